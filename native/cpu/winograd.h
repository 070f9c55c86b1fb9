// Convolutions of 3x3 with stride 1 by S. Winograd's minimal filtering, as A. Lavin and S. Gray apply it to networks (Fast Algorithms for
// Convolutional Neural Networks, arXiv:1509.09308): of F(2x2, 3x3), 16 products of transformed tiles give four pixels that take 36
// otherwise, of F(4x4, 3x3), 36 give 16 that take 144.
//   y = A^T [ (G w G^T) * (B^T x B) ] A,   dw = G^T [ (B^T x B) * (A dy A^T) ] G
#pragma once
#include <cstdint>
#include <memory>

#include "gemm.h"
#include "resultNorm.h"

namespace densecl::cpu {

// Of x [n, h, w, c] to y [n, oh, ow, o], with ph and pw rows and columns of zeros before x, and taps dh rows and dw columns apart: the
// pixels with the same remainders modulo these are a map of its own, whose taps lie side by side.
struct Filter3x3 {
  Filter3x3(int64_t n, int64_t h, int64_t w, int64_t c, int64_t oh, int64_t ow, int64_t o, int64_t ph, int64_t pw, int64_t dh, int64_t dw);
  int64_t n, h, w, c, oh, ow, o, ph, pw, dh, dw;
  // The side of the tiles of outputs, 2 or 4, or 0 where the products saved are not worth the transforms. By channels and sizes of an image
  // alone, so that what an image gives does not depend on the batch. DENSECL_WINOGRAD=0 says 0.
  int64_t outputs;
};

// The weight of a channel of y, a tap kh * 3 + kw and a channel of x. Between channels of y or of x the stride is 1.
template <class S>
struct Weight3x3 {
  const S* data;
  int64_t outStride, tapStride, inStride;  // tapStride is negative for an input gradient, whose data is the last tap's
};

// Transformed weights of a pair of channels, which has 9.
int64_t winogradPoints(int64_t outputs);

// What is stored, S, is float or bf16. Weights as the products want them, to be kept or not.
template <class S>
std::unique_ptr<Panels<float>> winogradPanels(const Filter3x3& filter, const Weight3x3<S>& weight, Life life = Life::op);
// Bias is of whole panels, or null; `norm` is applied to the result, or null.
template <class S>
void winograd(const Filter3x3& filter, S* y, const S* x, Panels<float>& panels, const float* bias, const ResultNorm<S>* norm);
// dw [o, 3, 3, c]
template <class S>
void winogradWeight(const Filter3x3& filter, float* dw, const S* dy, const S* x);

}  // namespace densecl::cpu

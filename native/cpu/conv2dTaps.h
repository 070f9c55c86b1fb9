// Convolutions tap by tap, for maps so small that windows lie mostly outside of them: a tap is a product of just the pixels that it
// connects. Nothing is multiplied by padding, and the weights of a tap are packed where they are used, into the cache.
#pragma once
#include "conv2d.h"

namespace densecl::cpu {

// Whether so little of the windows lies inside that this takes less time than other ways do. By sizes of an image and a kernel alone, so
// that what an image gives does not depend on the batch. Not where there is no window.
bool tapsPay(const ConvGeometry& g);

// T is what is multiplied, S what is stored. Bias is of the channels of y, or null.
template <class T, class S>
void forwardByTaps(const ConvGeometry& g, S* y, const S* x, const S* weight, const Accumulator<S>* bias);
template <class T, class S>
void backwardInputByTaps(const ConvGeometry& g, S* dx, const S* dy, const S* weight);
template <class T, class S>
void backwardWeightByTaps(const ConvGeometry& g, Accumulator<S>* dw, const S* dy, const S* x);

}  // namespace densecl::cpu

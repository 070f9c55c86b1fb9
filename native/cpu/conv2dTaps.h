// Convolutions tap by tap, for maps so small that windows lie mostly outside of them: a tap is a product of just the pixels that it
// connects. Nothing is multiplied by padding, and the weights of a tap are packed where they are used, into the cache.
#pragma once
#include "conv2d.h"

namespace densecl::cpu {

// Whether so little of the windows lies inside that this takes less time than other ways do. By sizes of an image and a kernel alone, so
// that what an image gives does not depend on the batch. Not where there is no window.
bool tapsPay(const ConvGeometry& g);

// Bias is of the channels of y, or null.
template <class T>
void forwardByTaps(const ConvGeometry& g, T* y, const T* x, const T* weight, const Accumulator<T>* bias);
template <class T>
void backwardInputByTaps(const ConvGeometry& g, T* dx, const T* dy, const T* weight);
template <class T>
void backwardWeightByTaps(const ConvGeometry& g, Accumulator<T>* dw, const T* dy, const T* x);

}  // namespace densecl::cpu

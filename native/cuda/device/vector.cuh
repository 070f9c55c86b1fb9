// Accesses of 16 bytes: the widest that a thread has, and what memory-bound kernels need to reach the bandwidth.
#pragma once
#include "platform.cuh"

namespace densecl::cuda {

template <class T>
struct alignas(16) Vector {
  static constexpr int kLength = 16 / static_cast<int>(sizeof(T));
  T v[kLength];
};

// Or a single element, where the channels are no multiple of a vector: the same code with another width.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Elements {
  T v[kWidth];
};

template <class T, int kWidth>
DEVICE Elements<T, kWidth> load(const T* at) {
#if !defined(__CUDACC__)
  simt::checkAligned(at, sizeof(T) * kWidth);
#endif
  return *reinterpret_cast<const Elements<T, kWidth>*>(at);
}
template <class T, int kWidth>
DEVICE void store(T* at, const Elements<T, kWidth>& value) {
#if !defined(__CUDACC__)
  simt::checkAligned(at, sizeof(T) * kWidth);
#endif
  *reinterpret_cast<Elements<T, kWidth>*>(at) = value;
}

}  // namespace densecl::cuda

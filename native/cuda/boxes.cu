// Overlaps of boxes, and boxes as differences from others; native/cpu/boxes.cpp has the definitions. A thread takes a result.
#include "kernel/boxes.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

struct Coding {
  float weights[4];
  template <class Names>
  Coding(const Call& call, Names)
      : weights{static_cast<float>(call.number(Names::weightX)), static_cast<float>(call.number(Names::weightY)),
                static_cast<float>(call.number(Names::weightW)), static_cast<float>(call.number(Names::weightH))} {}
};

template <class T>
__global__ void __launch_bounds__(kThreads) iouKernel(T* y, const T* a, const T* b, int64_t n, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads)
    y[i] = T(overlap(boxAt(a, i / n), boxAt(b, i % n)));
}

template <class T>
__global__ void __launch_bounds__(kThreads) encodeKernel(T* y, const T* boxes, const T* targets, Coding coding, int64_t count) {
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; r < count; r += static_cast<int64_t>(gridDim.x) * kThreads)
    for (int k = 0; k < 2; ++k) {
      const float low = static_cast<float>(boxes[r * 4 + k]), size = static_cast<float>(boxes[r * 4 + k + 2]) - low;
      const float targetLow = static_cast<float>(targets[r * 4 + k]), targetSize = static_cast<float>(targets[r * 4 + k + 2]) - targetLow;
      // The difference of centres: that of the corners, which may be large, is taken first.
      y[r * 4 + k] = T(coding.weights[k] * ((targetLow - low) + (targetSize - size) * 0.5f) / size);
      y[r * 4 + k + 2] = T(coding.weights[k + 2] * logf(targetSize / size));
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    decodeKernel(float* y, const T* deltas, const float* boxes, Coding coding, float bound, bool bothSides, int64_t perBox, int64_t count) {
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; r < count; r += static_cast<int64_t>(gridDim.x) * kThreads)
    for (int k = 0; k < 2; ++k) {
      const float low = boxes[r / perBox * 4 + k], size = boxes[r / perBox * 4 + k + 2] - low;
      float growth = static_cast<float>(deltas[r * 4 + k + 2]) / coding.weights[k + 2];
      growth = growth > bound ? bound : bothSides && growth < -bound ? -bound : growth;
      const float centre = static_cast<float>(deltas[r * 4 + k]) / coding.weights[k] * size + low + size * 0.5f;
      const float half = expf(growth) * size * 0.5f;
      y[r * 4 + k] = centre - half;
      y[r * 4 + k + 2] = centre + half;
    }
}

}  // namespace

void boxIou(const Call& call) {
  using Names = args::boxIou;
  const Tensor &y = call.tensor(Names::y), &a = call.tensor(Names::a), &b = call.tensor(Names::b);
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, iouKernel<T>, loopGrid(call, y.size(), kThreads), kThreads, 0, y.data<T>(), a.data<T>(), b.data<T>(), b.dim(0), y.size());
  });
}

void encodeBoxes(const Call& call) {
  using Names = args::encodeBoxes;
  const Tensor &y = call.tensor(Names::y), &boxes = call.tensor(Names::boxes), &targets = call.tensor(Names::targets);
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, encodeKernel<T>, loopGrid(call, y.dim(0), kThreads), kThreads, 0, y.data<T>(), boxes.data<T>(), targets.data<T>(),
           Coding(call, Names{}), y.dim(0));
  });
}

void decodeBoxes(const Call& call) {
  using Names = args::decodeBoxes;
  const Tensor &y = call.tensor(Names::y), &deltas = call.tensor(Names::deltas), &boxes = call.tensor(Names::boxes);
  const int64_t count = deltas.dim(0) * deltas.dim(1);
  dispatchFloat(call, deltas.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, decodeKernel<T>, loopGrid(call, count, kThreads), kThreads, 0, y.data<float>(), deltas.data<T>(), boxes.data<float>(),
           Coding(call, Names{}), static_cast<float>(call.number(Names::bound)), call.flag(Names::bothSides), deltas.dim(1), count);
  });
}

}  // namespace densecl::cuda

// Masks of boxes as pixels of an image; native/cpu/pasteMasks.cpp has the definition. A thread takes a pixel.
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

// Where a pixel lies in a mask along one axis: between the cell `low`, which may be -1, and the next one.
struct Place {
  int low;
  float share;  // of the next cell
  bool inside;
  DEVICE Place(float from, float to, int cells, int pixel) : low(0), share(0) {
    const float length = to - from, count = static_cast<float>(cells);
    const float at = (static_cast<float>(pixel) + 0.5f - from) * count / length - 0.5f;
    inside = length > 0 && at > -1 && at < count;  // not of a NaN; of an infinite box -1/2
    inside = inside && length <= 3.4028235e38f;
    if (!inside) return;
    low = static_cast<int>(floorf(at));
    share = at - floorf(at);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    pasteKernel(uint8_t* y, const T* x, const float* boxes, int P, int Q, int height, int width, float threshold, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / width, r = row / height;
    const float* box = boxes + r * 4;
    float value = 0;
    const Place v(box[1], box[3], P, static_cast<int>(row % height));
    const Place u(box[0], box[2], Q, static_cast<int>(i % width));
    if (v.inside && u.inside) {
      const T* mask = x + r * P * Q;
      const auto cell = [&](int p, int q) { return p >= 0 && p < P && q >= 0 && q < Q ? static_cast<float>(mask[p * Q + q]) : 0.0f; };
      const float above = (1 - u.share) * cell(v.low, u.low) + u.share * cell(v.low, u.low + 1);
      const float below = (1 - u.share) * cell(v.low + 1, u.low) + u.share * cell(v.low + 1, u.low + 1);
      value = (1 - v.share) * above + v.share * below;
    }
    y[i] = value >= threshold;
  }
}

}  // namespace

void pasteMasks(const Call& call) {
  using Names = args::pasteMasks;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &boxes = call.tensor(Names::boxes);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, pasteKernel<T>, loopGrid(call, y.size(), kThreads), kThreads, 0, y.data<uint8_t>(), x.data<T>(), boxes.data<float>(),
           static_cast<int>(x.dim(1)), static_cast<int>(x.dim(2)), static_cast<int>(y.dim(1)), static_cast<int>(y.dim(2)),
           static_cast<float>(call.number(Names::threshold)), y.size());
  });
}

}  // namespace densecl::cuda

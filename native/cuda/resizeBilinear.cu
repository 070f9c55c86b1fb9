// Bilinear resize without antialiasing. Backward gathers: an input pixel adds what the outputs that read it send back.
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

struct Sample {
  int low, high;
  float weight;  // of high
};

struct Axis {
  int in, out;
  float scale;
  bool alignCorners;
  Axis(int64_t in, int64_t out, bool alignCorners)
      : in(static_cast<int>(in)),
        out(static_cast<int>(out)),
        scale(alignCorners ? (out > 1 ? static_cast<float>(static_cast<double>(in - 1) / static_cast<double>(out - 1)) : 0.0f)
                           : static_cast<float>(static_cast<double>(in) / static_cast<double>(out))),
        alignCorners(alignCorners) {}
  DEVICE Sample sample(int i) const {
    const float at = alignCorners ? static_cast<float>(i) * scale : fmaxf(0.0f, (static_cast<float>(i) + 0.5f) * scale - 0.5f);
    const int floor = static_cast<int>(at), low = floor < in - 1 ? floor : in - 1;
    return {low, low + 1 < in ? low + 1 : in - 1, at - static_cast<float>(low)};
  }
  // Outputs begin <= o < end hold all that read input i.
  DEVICE void readers(int i, int& begin, int& end) const {
    begin = 0;
    end = out;
    if (scale <= 0) return;
    const float offset = alignCorners ? 0.0f : 0.5f;
    if (i > 0) begin = static_cast<int>((static_cast<float>(i) - 1 + offset) / scale - offset) - 1;
    if (i < in - 1) end = static_cast<int>((static_cast<float>(i) + 1 + offset) / scale - offset) + 2;
    begin = begin > 0 ? begin : 0;
    end = end < out ? end : out;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) resizeKernel(T* y, const T* x, Axis rows, Axis columns, int channels, int64_t count) {
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; unit < count;
       unit += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int channel = static_cast<int>(unit % channels);
    const int64_t pixel = unit / channels, image = pixel / columns.out / rows.out;
    const Sample row = rows.sample(static_cast<int>(pixel / columns.out % rows.out)),
                 column = columns.sample(static_cast<int>(pixel % columns.out));
    const T* from = x + image * rows.in * columns.in * channels + channel;
    const auto at = [&](int i, int j) { return static_cast<float>(from[(static_cast<int64_t>(i) * columns.in + j) * channels]); };
    y[unit] = T((1 - row.weight) * ((1 - column.weight) * at(row.low, column.low) + column.weight * at(row.low, column.high)) +
                row.weight * ((1 - column.weight) * at(row.high, column.low) + column.weight * at(row.high, column.high)));
  }
}

DEVICE float shareOf(const Sample& sample, int i) {
  return (sample.low == i ? 1 - sample.weight : 0.0f) + (sample.high == i ? sample.weight : 0.0f);
}

template <class T>
__global__ void __launch_bounds__(kThreads) resizeBackwardKernel(T* dx, const T* dy, Axis rows, Axis columns, int channels, int64_t count) {
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; unit < count;
       unit += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int channel = static_cast<int>(unit % channels);
    const int64_t pixel = unit / channels, image = pixel / columns.in / rows.in;
    const int i = static_cast<int>(pixel / columns.in % rows.in), j = static_cast<int>(pixel % columns.in);
    int firstRow, lastRow, firstColumn, lastColumn;
    rows.readers(i, firstRow, lastRow);
    columns.readers(j, firstColumn, lastColumn);
    float sum = 0;
    for (int r = firstRow; r < lastRow; ++r) {
      const float rowShare = shareOf(rows.sample(r), i);
      if (rowShare == 0) continue;
      for (int c = firstColumn; c < lastColumn; ++c)
        sum += rowShare * shareOf(columns.sample(c), j) *
               static_cast<float>(dy[((image * rows.out + r) * columns.out + c) * channels + channel]);
    }
    dx[unit] = T(sum);
  }
}

}  // namespace

void resizeBilinear(const Call& call) {
  const Tensor &y = call.tensor(args::resizeBilinear::y), &x = call.tensor(args::resizeBilinear::x);
  const bool align = call.flag(args::resizeBilinear::alignCorners);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, resizeKernel<T>, loopGrid(call, y.size(), kThreads), kThreads, 0, y.data<T>(), x.data<T>(),
           Axis(x.dim(1), y.dim(1), align), Axis(x.dim(2), y.dim(2), align), static_cast<int>(x.dim(3)), y.size());
  });
}

void resizeBilinearBackward(const Call& call) {
  const Tensor &dx = call.tensor(args::resizeBilinearBackward::dx), &dy = call.tensor(args::resizeBilinearBackward::dy);
  const bool align = call.flag(args::resizeBilinearBackward::alignCorners);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, resizeBackwardKernel<T>, loopGrid(call, dx.size(), kThreads), kThreads, 0, dx.data<T>(), dy.data<T>(),
           Axis(dx.dim(1), dy.dim(1), align), Axis(dx.dim(2), dy.dim(2), align), static_cast<int>(dx.dim(3)), dx.size());
  });
}

}  // namespace densecl::cuda

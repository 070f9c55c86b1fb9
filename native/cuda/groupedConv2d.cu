// Grouped convolutions: native/cpu/groupedConv2d.cpp has the formulas. A thread computes one output channel of one pixel, or 16 bytes of
// them where each group has one channel (depthwise): the products are few, and what a thread reads its neighbours read as well.
#include "../core/convolution.h"
#include "lines.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

// Places along an axis: of x, of y, taps, and how they meet.
struct Axis {
  int large, small, taps, stride, padding, dilation;
  // The place of x that place i of y sees through a tap, or -1.
  DEVICE int seen(int i, int tap) const {
    const int at = i * stride - padding + tap * dilation;
    return at >= 0 && at < large ? at : -1;
  }
  // The place of y that sees place i of x through a tap, or -1.
  DEVICE int seeing(int i, int tap) const {
    const int at = i + padding - tap * dilation;
    return at >= 0 && at % stride == 0 && at / stride < small ? at / stride : -1;
  }
};

// What the kernels know of a convolution.
struct Geometry {
  int images, c, o, groups, in, outs;  // in and outs: channels of a group
  Axis rows, columns;

  explicit Geometry(const GroupedConvolution<int>& of)
      : images(static_cast<int>(of.n)),
        c(static_cast<int>(of.c)),
        o(static_cast<int>(of.o)),
        groups(static_cast<int>(of.groups)),
        in(static_cast<int>(of.in)),
        outs(static_cast<int>(of.outs)),
        rows{static_cast<int>(of.h), static_cast<int>(of.oh), of.kh, of.sh, of.ph, of.dh},
        columns{static_cast<int>(of.w), static_cast<int>(of.ow), of.kw, of.sw, of.pw, of.dw} {}
  DENSECL_BOTH int taps() const { return rows.taps * columns.taps; }
  bool depthwise() const { return in == 1 && outs == 1; }
};

// packed [taps, in, O] of weight [O, taps, in]; transposed [taps, outs, C]: what neighbouring threads read lies side by side.
template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads) packKernel(T* packed, const T* weight, Geometry g) {
  const int size = g.o * g.taps() * g.in, channels = kTransposed ? g.c : g.o, depth = kTransposed ? g.outs : g.in;
  for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < size;
       i += static_cast<int>(gridDim.x) * kThreads) {
    const int channel = i % channels, row = i / channels % depth, tap = i / channels / depth;
    const int o = kTransposed ? channel / g.in * g.outs + row : channel, c = kTransposed ? channel % g.in : row;
    packed[i] = weight[(o * g.taps() + tap) * g.in + c];
  }
}

template <class T>
struct GatherJob {
  T* out;
  const T *from, *weight;  // packed
  const float* bias;       // or null
  Geometry geometry;
  int64_t units;
};

// y from x, or transposed dx from dy.
template <class T, int kWidth, bool kTransposed>
__global__ void __launch_bounds__(kThreads) gatherPixelsKernel(GatherJob<T> job) {
  const Geometry& g = job.geometry;
  const int channels = kTransposed ? g.c : g.o, fromChannels = kTransposed ? g.o : g.c;
  const int height = kTransposed ? g.rows.large : g.rows.small, width = kTransposed ? g.columns.large : g.columns.small;
  const int fromHeight = kTransposed ? g.rows.small : g.rows.large, fromWidth = kTransposed ? g.columns.small : g.columns.large;
  const int depth = kTransposed ? g.outs : g.in, own = kTransposed ? g.in : g.outs;
  for (int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; unit < job.units;
       unit += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int channel = static_cast<int>(unit % (channels / kWidth)) * kWidth, first = channel / own * depth;
    const int64_t pixel = unit / (channels / kWidth), image = pixel / width / height;
    const int i = static_cast<int>(pixel / width % height), j = static_cast<int>(pixel % width);
    float sum[kWidth];
    for (int e = 0; e < kWidth; ++e) sum[e] = job.bias == nullptr ? 0.0f : job.bias[channel + e];
    for (int kh = 0; kh < g.rows.taps; ++kh) {
      const int row = kTransposed ? g.rows.seeing(i, kh) : g.rows.seen(i, kh);
      if (row < 0) continue;
      for (int kw = 0; kw < g.columns.taps; ++kw) {
        const int column = kTransposed ? g.columns.seeing(j, kw) : g.columns.seen(j, kw);
        if (column < 0) continue;
        const T* from = job.from + ((image * fromHeight + row) * fromWidth + column) * fromChannels + first;
        const T* weight = job.weight + static_cast<int64_t>(kh * g.columns.taps + kw) * depth * channels + channel;
        // Wider than one, a group is one channel: first is channel and depth is 1.
        for (int c = 0; c < depth; ++c) {
          const auto x = load<T, kWidth>(from + c), w = load<T, kWidth>(weight + c * channels);
          for (int e = 0; e < kWidth; ++e) sum[e] += static_cast<float>(x.v[e]) * static_cast<float>(w.v[e]);
        }
      }
    }
    storeRounded(job.out + pixel * channels + channel, sum);
  }
}

template <class T>
struct WeightJob {
  float* partial;  // [splits, O, taps, in]
  const T *dy, *x;
  Geometry geometry;
  int units;
};

// A thread sums over the lines of its split for one weight, or depthwise for those of neighbouring channels.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) weightKernel(WeightJob<T> job) {
  const Geometry& g = job.geometry;
  const int64_t lines = static_cast<int64_t>(g.images) * g.rows.small;
  const int64_t begin = lines * blockIdx.y / gridDim.y, end = lines * (blockIdx.y + 1) / gridDim.y;
  const int size = g.o * g.taps() * g.in;
  for (int unit = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); unit < job.units;
       unit += static_cast<int>(gridDim.x) * kThreads) {
    const int o = unit % (g.o / kWidth) * kWidth, c = unit / (g.o / kWidth) % g.in, tap = unit / (g.o / kWidth) / g.in;
    const int kh = tap / g.columns.taps, kw = tap % g.columns.taps, channel = o / g.outs * g.in + c;
    float sum[kWidth] = {};
    for (int64_t line = begin; line < end; ++line) {
      const int row = g.rows.seen(static_cast<int>(line % g.rows.small), kh);
      if (row < 0) continue;
      const T* dy = job.dy + line * g.columns.small * g.o + o;
      const T* x = job.x + (line / g.rows.small * g.rows.large + row) * g.columns.large * g.c + channel;
      for (int j = 0; j < g.columns.small; ++j) {
        const int column = g.columns.seen(j, kw);
        if (column < 0) continue;
        const auto a = load<T, kWidth>(dy + static_cast<int64_t>(j) * g.o), b = load<T, kWidth>(x + static_cast<int64_t>(column) * g.c);
        for (int e = 0; e < kWidth; ++e) sum[e] += static_cast<float>(a.v[e]) * static_cast<float>(b.v[e]);
      }
    }
    for (int e = 0; e < kWidth; ++e)
      job.partial[static_cast<int64_t>(blockIdx.y) * size + (static_cast<int64_t>(o + e) * g.taps() + tap) * g.in + c] = sum[e];
  }
}

// Calls body(T{}, width): the vector's where each group is one channel and these are whole vectors, else 1.
template <class F>
void dispatchGroups(const Call& call, const Geometry& g, const Tensor& x, F body) {
  dispatchWidth(call, x, [&](auto zero, auto width) {
    if (width.value > 1 && g.depthwise())
      body(zero, width);
    else
      body(zero, std::integral_constant<int, 1>{});
  });
}

template <bool kTransposed>
void gatherPixels(const Call& call, const Geometry& g, const Tensor& out, const Tensor& from, const Tensor& weight, const Tensor* bias) {
  dispatchGroups(call, g, out, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    DeviceScratch<T> packed(call, weight.size());
    launch(call, packKernel<T, kTransposed>, loopGrid(call, weight.size(), kThreads), kThreads, 0, packed.data(), weight.data<T>(), g);
    const int64_t units = out.size() / kWidth;
    launch(call, gatherPixelsKernel<T, kWidth, kTransposed>, loopGrid(call, units, kThreads), kThreads, 0,
           GatherJob<T>{out.data<T>(), from.data<T>(), packed.data(), optionalData<float>(bias), g, units});
  });
}

}  // namespace

void groupedConv2d(const Call& call) {
  using Names = args::groupedConv2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &weight = call.tensor(Names::weight);
  gatherPixels<false>(call, Geometry({call, Names{}, x, weight, y, "y"}), y, x, weight, call.optional(Names::bias));
}

void groupedConv2dBackwardInput(const Call& call) {
  using Names = args::groupedConv2dBackwardInput;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &weight = call.tensor(Names::weight);
  gatherPixels<true>(call, Geometry({call, Names{}, dx, weight, dy, "dy"}), dx, dy, weight, nullptr);
}

void groupedConv2dBackwardWeight(const Call& call) {
  using Names = args::groupedConv2dBackwardWeight;
  const Tensor &dweight = call.tensor(Names::dweight), &dy = call.tensor(Names::dy), &x = call.tensor(Names::x);
  const Geometry g({call, Names{}, x, dweight, dy, "dy"});
  dispatchGroups(call, g, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    const int64_t units = dweight.size() / kWidth, lines = int64_t{g.images} * g.rows.small;
    // As many splits of the lines as give every multiprocessor some blocks.
    const int64_t splits =
        std::max<int64_t>(1, std::min<int64_t>({lines, 256, ceilDiv(int64_t{8} * multiprocessors(call) * kThreads, units)}));
    DeviceScratch<float> partial(call, splits > 1 ? splits * dweight.size() : 0);
    float* to = splits > 1 ? partial.data() : dweight.data<float>();
    launch(call, weightKernel<T, kWidth>, Grid{ceilDiv(units, kThreads), splits}, kThreads, 0,
           WeightJob<T>{to, dy.data<T>(), x.data<T>(), g, static_cast<int>(units)});
    if (splits > 1) sumLines(call, Planes<1>{partial.data(), splits, static_cast<int>(dweight.size())}, dweight.data<float>());
  });
}

}  // namespace densecl::cuda

// groupedConv2d: x [N, H, W, C], weight [O, KH, KW, C/G], y [N, OH, OW, O]; output o of group g = o / (O/G) sees the channels of g:
//   y[n, oh, ow, o] = b[o] + sum over kh, kw, c of w[o, kh, kw, c] * x[n, oh*sh - ph + kh*dh, ow*sw - pw + kw*dw, g*C/G + c]
// Products of so few channels gain nothing from tiles: each pixel gathers from the pixels that it sees, many channels at a time. With one
// channel to a group (depthwise) the groups are what a vector holds, otherwise the outputs of one group.
#include <vector>

#include "../core/convolution.h"
#include "../core/parallel.h"
#include "../core/scratch.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

// Where a vector is not a whole register of the instruction set, the compiler makes it of two. Loops over lanes alone would be left to its
// judgement, which unrolls them into scalars.
template <class T>
struct Lanes {
  static constexpr int kCount = 32 / static_cast<int>(sizeof(T));
  typedef T type __attribute__((vector_size(32), aligned(sizeof(T)), may_alias));
};

// kVectors vectors of sums, or with 0 a single one.
template <class T, int kVectors>
struct Sums {
  using V = typename Lanes<T>::type;
  static constexpr int kLanes = kVectors * Lanes<T>::kCount;
  V v[kVectors];
  INLINE explicit Sums(const T* from) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) v[i] = from == nullptr ? V{} : *reinterpret_cast<const V*>(from + i * Lanes<T>::kCount);
  }
  // Plus a * b, where a is one value or as many as there are sums.
  INLINE void add(T a, const T* b) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) v[i] += a * *reinterpret_cast<const V*>(b + i * Lanes<T>::kCount);
  }
  INLINE void add(const T* a, const T* b) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i)
      v[i] += *reinterpret_cast<const V*>(a + i * Lanes<T>::kCount) * *reinterpret_cast<const V*>(b + i * Lanes<T>::kCount);
  }
  INLINE void store(T* to) const {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) *reinterpret_cast<V*>(to + i * Lanes<T>::kCount) = v[i];
  }
};
template <class T>
struct Sums<T, 0> {
  static constexpr int kLanes = 1;
  T v;
  INLINE explicit Sums(const T* from) : v(from == nullptr ? T{0} : *from) {}
  INLINE void add(T a, const T* b) { v += a * *b; }
  INLINE void add(const T* a, const T* b) { v += *a * *b; }
  INLINE void store(T* to) const { *to = v; }
};

INLINE const float* plus(const float* at, int64_t offset) { return at == nullptr ? nullptr : at + offset; }
INLINE const double* plus(const double* at, int64_t offset) { return at == nullptr ? nullptr : at + offset; }

// What one pixel sees: `count` pixels and the taps they are seen through.
template <class T>
struct Pixel {
  T* out;
  const T* bias;  // or null
  const T* const* sources;
  const int64_t* taps;
  int64_t count;
  const T* weights;  // [taps, channels], or [groups, taps, in, out]
  int64_t allTaps, groups, in, outs;
};

template <class T, int kVectors>
INLINE void depthwiseBlock(const Pixel<T>& job, int64_t c) {
  Sums<T, kVectors> sums(plus(job.bias, c));
  for (int64_t k = 0; k < job.count; ++k) sums.add(job.sources[k] + c, job.weights + job.taps[k] * job.groups + c);
  sums.store(job.out + c);
}

template <class T>
INLINE void depthwisePixelLoop(const Pixel<T>& job) {
  int64_t c = 0;
  for (; c + Sums<T, 8>::kLanes <= job.groups; c += Sums<T, 8>::kLanes) depthwiseBlock<T, 8>(job, c);
  for (; c + Sums<T, 2>::kLanes <= job.groups; c += Sums<T, 2>::kLanes) depthwiseBlock<T, 2>(job, c);
  for (; c < job.groups; ++c) depthwiseBlock<T, 0>(job, c);
}
SIMD_LOOP(depthwisePixel, Pixel)

template <class T, int kVectors>
INLINE void groupBlock(const Pixel<T>& job, int64_t g, int64_t o) {
  Sums<T, kVectors> sums(plus(job.bias, g * job.outs + o));
  for (int64_t k = 0; k < job.count; ++k) {
    const T *x = job.sources[k] + g * job.in, *w = job.weights + (g * job.allTaps + job.taps[k]) * job.in * job.outs + o;
    for (int64_t c = 0; c < job.in; ++c, w += job.outs) sums.add(x[c], w);
  }
  sums.store(job.out + g * job.outs + o);
}

template <class T>
INLINE void groupedPixelLoop(const Pixel<T>& job) {
  for (int64_t g = 0; g < job.groups; ++g) {
    int64_t o = 0;
    for (; o + Sums<T, 4>::kLanes <= job.outs; o += Sums<T, 4>::kLanes) groupBlock<T, 4>(job, g, o);
    for (; o + Sums<T, 1>::kLanes <= job.outs; o += Sums<T, 1>::kLanes) groupBlock<T, 1>(job, g, o);
    for (; o < job.outs; ++o) groupBlock<T, 0>(job, g, o);
  }
}
SIMD_LOOP(groupedPixel, Pixel)

// Adds to a tap of the weight gradient the products of a run of pixels dy and those of x that they see through it.
template <class T>
struct Run {
  T* out;  // [channels], or [groups * outs] rows of `in` that are outStride apart
  const T *dy, *x;
  int64_t count, dyStride, xStride, outStride, groups, in, outs;
};

template <class T, int kVectors>
INLINE void depthwiseRunBlock(const Run<T>& job, int64_t c) {
  Sums<T, kVectors> sums(job.out + c);
  for (int64_t i = 0; i < job.count; ++i) sums.add(job.dy + i * job.dyStride + c, job.x + i * job.xStride + c);
  sums.store(job.out + c);
}

template <class T>
INLINE void depthwiseRunLoop(const Run<T>& job) {
  int64_t c = 0;
  for (; c + Sums<T, 8>::kLanes <= job.groups; c += Sums<T, 8>::kLanes) depthwiseRunBlock<T, 8>(job, c);
  for (; c + Sums<T, 2>::kLanes <= job.groups; c += Sums<T, 2>::kLanes) depthwiseRunBlock<T, 2>(job, c);
  for (; c < job.groups; ++c) depthwiseRunBlock<T, 0>(job, c);
}
SIMD_LOOP(depthwiseRun, Run)

template <class T, int kVectors>
INLINE void groupedRunBlock(const Run<T>& job, int64_t o, int64_t c) {
  Sums<T, kVectors> sums(job.out + o * job.outStride + c);
  const T *dy = job.dy + o, *x = job.x + o / job.outs * job.in + c;
  for (int64_t i = 0; i < job.count; ++i) sums.add(dy[i * job.dyStride], x + i * job.xStride);
  sums.store(job.out + o * job.outStride + c);
}

template <class T>
INLINE void groupedRunLoop(const Run<T>& job) {
  for (int64_t o = 0; o < job.groups * job.outs; ++o) {
    int64_t c = 0;
    for (; c + Sums<T, 4>::kLanes <= job.in; c += Sums<T, 4>::kLanes) groupedRunBlock<T, 4>(job, o, c);
    for (; c + Sums<T, 1>::kLanes <= job.in; c += Sums<T, 1>::kLanes) groupedRunBlock<T, 1>(job, o, c);
    for (; c < job.in; ++c) groupedRunBlock<T, 0>(job, o, c);
  }
}
SIMD_LOOP(groupedRun, Run)

using Geometry = GroupedConvolution<int64_t>;

// For every place along an axis and every tap, the place that is seen through it, or -1. Transposed: the places of y that see one of x.
struct Axis {
  int64_t taps;
  std::vector<int64_t> seen;
  Axis(const Geometry& g, int axis, bool transposed) : taps(axis == 0 ? g.kh : g.kw) {
    const int64_t large = axis == 0 ? g.h : g.w, small = axis == 0 ? g.oh : g.ow, from = transposed ? large : small;
    const int64_t s = axis == 0 ? g.sh : g.sw, padding = axis == 0 ? g.ph : g.pw, dilation = axis == 0 ? g.dh : g.dw;
    for (int64_t i = 0; i < from; ++i)
      for (int64_t k = 0; k < taps; ++k) {
        const int64_t step = k * dilation - padding, at = transposed ? i - step : i * s + step;
        if (transposed)
          seen.push_back(at >= 0 && at % s == 0 && at / s < small ? at / s : -1);
        else
          seen.push_back(at >= 0 && at < large ? at : -1);
      }
  }
  int64_t operator()(int64_t i, int64_t tap) const { return seen[i * taps + tap]; }
};

// weights[g, o, t, c] as [t, g] for depthwise kernels, else [g, t, c, o], or [g, t, o, c] transposed.
template <class T>
void packWeights(const Geometry& g, bool transposed, const T* weight, T* packed) {
  const int64_t taps = g.taps(), rows = transposed ? g.outs : g.in, columns = transposed ? g.in : g.outs;
  for (int64_t group = 0; group < g.groups; ++group)
    for (int64_t o = 0; o < g.outs; ++o)
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t c = 0; c < g.in; ++c) {
          const int64_t row = transposed ? o : c, column = transposed ? c : o;
          const int64_t at = g.depthwise() ? t * g.groups + group : ((group * taps + t) * rows + row) * columns + column;
          packed[at] = *weight++;
        }
}

// Every pixel of `out` gathers from those of `from`: y from x, or transposed dx from dy.
template <class T>
void gather(const Geometry& g, bool transposed, T* out, const T* from, const T* weight, const T* bias) {
  Scratch<T> packed(g.o * g.taps() * g.in);
  packWeights(g, transposed, weight, packed.data());
  const Axis rows(g, 0, transposed), columns(g, 1, transposed);
  const int64_t height = transposed ? g.h : g.oh, width = transposed ? g.w : g.ow, channels = transposed ? g.c : g.o;
  const int64_t fromHeight = transposed ? g.oh : g.h, fromWidth = transposed ? g.ow : g.w, fromChannels = transposed ? g.o : g.c;
  const int64_t in = transposed ? g.outs : g.in, outs = transposed ? g.in : g.outs;
  parallelFor(g.n * height, [&](int64_t line) {
    const int64_t image = line / height, i = line % height;
    std::vector<const T*> sources(g.taps());
    std::vector<int64_t> taps(g.taps());
    for (int64_t j = 0; j < width; ++j) {
      int64_t count = 0;
      for (int64_t kh = 0; kh < g.kh; ++kh) {
        const int64_t row = rows(i, kh);
        if (row < 0) continue;
        for (int64_t kw = 0; kw < g.kw; ++kw) {
          const int64_t column = columns(j, kw);
          if (column < 0) continue;
          sources[count] = from + ((image * fromHeight + row) * fromWidth + column) * fromChannels;
          taps[count++] = kh * g.kw + kw;
        }
      }
      const Pixel<T> pixel{
          out + (line * width + j) * channels, bias, sources.data(), taps.data(), count, packed.data(), g.taps(), g.groups, in, outs};
      if (g.depthwise())
        depthwisePixel(pixel);
      else
        groupedPixel(pixel);
    }
  });
}

// Lines of y are cut into parts that depend on shapes alone; their sums are added in order.
template <class T>
void backwardWeight(const Geometry& g, T* dweight, const T* dy, const T* x) {
  const Axis rows(g, 0, false), columns(g, 1, false);
  const int64_t lines = g.n * g.oh, parts = std::min<int64_t>(lines, 16), size = g.o * g.taps() * g.in, taps = g.taps();
  Scratch<T> partial(parts * size);
  parallelFor(parts, [&](int64_t part) {
    T* sums = partial.data() + part * size;
    std::fill_n(sums, size, T{0});
    for (int64_t line = lines * part / parts; line < lines * (part + 1) / parts; ++line)
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t row = rows(line % g.oh, t / g.kw), kw = t % g.kw;
        if (row < 0) continue;
        int64_t first = 0, last = g.ow;  // the pixels of y that see x through this tap
        while (first < last && columns(first, kw) < 0) ++first;
        while (first < last && columns(last - 1, kw) < 0) --last;
        if (first == last) continue;
        const T* from = x + ((line / g.oh * g.h + row) * g.w + columns(first, kw)) * g.c;
        const Run<T> run{sums + t * (g.depthwise() ? g.groups : g.in),
                         dy + (line * g.ow + first) * g.o,
                         from,
                         last - first,
                         g.o,
                         g.sw * g.c,
                         taps * g.in,
                         g.groups,
                         g.in,
                         g.outs};
        if (g.depthwise())
          depthwiseRun(run);
        else
          groupedRun(run);
      }
  });
  for (int64_t i = 0; i < size; ++i) {
    const int64_t at = g.depthwise() ? i % taps * g.groups + i / taps : i;
    T sum{0};
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + at];
    dweight[i] = sum;
  }
}

}  // namespace

void groupedConv2d(const Call& call) {
  using Names = args::groupedConv2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &weight = call.tensor(Names::weight);
  const Tensor* bias = call.optional(Names::bias);
  const Geometry g(call, Names{}, x, weight, y, "y");
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    gather<T>(g, false, y.data<T>(), x.data<T>(), weight.data<T>(), bias == nullptr ? nullptr : bias->data<T>());
  });
}

void groupedConv2dBackwardInput(const Call& call) {
  using Names = args::groupedConv2dBackwardInput;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &weight = call.tensor(Names::weight);
  const Geometry g(call, Names{}, dx, weight, dy, "dy");
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    gather<T>(g, true, dx.data<T>(), dy.data<T>(), weight.data<T>(), nullptr);
  });
}

void groupedConv2dBackwardWeight(const Call& call) {
  using Names = args::groupedConv2dBackwardWeight;
  const Tensor &dweight = call.tensor(Names::dweight), &dy = call.tensor(Names::dy), &x = call.tensor(Names::x);
  const Geometry g(call, Names{}, x, dweight, dy, "dy");
  dispatchFloat(call, dweight.dtype, [&](auto zero) {
    using T = decltype(zero);
    backwardWeight<T>(g, dweight.data<T>(), dy.data<T>(), x.data<T>());
  });
}

}  // namespace densecl::cpu

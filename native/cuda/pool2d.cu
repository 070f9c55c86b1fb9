// Pooling. A thread makes one output pixel of a vector of channels; backward gathers, so that nothing is added twice and the
// order of additions is fixed.
#include <climits>

#include "../core/windows.h"
#include "kernel/norm.cuh"
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

struct Window {
  int begin, end, full;
};

struct Axis {
  int in, out, kernel, stride, padding;
  bool adaptive;
  DEVICE Window window(int i) const {
    if (adaptive) {
      const int begin = i * in / out, end = ((i + 1) * in + out - 1) / out;
      return {begin, end, end - begin};
    }
    const int begin = i * stride - padding, stop = begin + kernel < in + padding ? begin + kernel : in + padding;
    return {begin > 0 ? begin : 0, stop < in ? stop : in, stop - begin};
  }
  // The outputs whose windows may hold input i: a few more for adaptive windows, whose bounds are rounded.
  DEVICE Window outputs(int i) const {
    int begin, end;
    if (adaptive) {
      begin = i * out / in - 1;
      end = ((i + 1) * out + in - 1) / in + 1;
    } else {
      const int at = i + padding - kernel + 1;
      begin = at > 0 ? (at + stride - 1) / stride : 0;
      end = (i + padding) / stride + 1;
    }
    return {begin > 0 ? begin : 0, end < out ? end : out, 0};
  }
};

struct Pool {
  Axis y, x;
  int64_t n;
  int channels;
  bool countPadding;
  // `outName` is what the op calls its tensor of windows.
  template <class Names>
  Pool(const Call& call, Names, const Tensor& in, const Tensor& out, const char* outName, bool adaptive = false, bool countPadding = false)
      : n(in.dim(0)), channels(static_cast<int>(in.dim(3))), countPadding(countPadding) {
    const auto number = [&](auto name) { return static_cast<int>(call.integer(name)); };
    y = {static_cast<int>(in.dim(1)), static_cast<int>(out.dim(1)), number(Names::kernelH),
         number(Names::strideH),      number(Names::paddingH),      adaptive};
    x = {static_cast<int>(in.dim(2)), static_cast<int>(out.dim(2)), number(Names::kernelW),
         number(Names::strideW),      number(Names::paddingW),      adaptive};
    if (adaptive) return;
    requirePixels(call, y.kernel, x.kernel, y.padding, x.padding);
    requireWindows(call, outName, out, windowsAlong(y.in, y.kernel, y.stride, y.padding),
                   windowsAlong(x.in, x.kernel, x.stride, x.padding));
  }
  DEVICE float scale(const Window& rows, const Window& columns) const {
    return 1.0f / static_cast<float>(countPadding ? rows.full * columns.full : (rows.end - rows.begin) * (columns.end - columns.begin));
  }
};

// Pixel and channel of a unit of work in the block's image, from a flat index.
struct Place {
  int64_t image;
  int i, j, channel;
  DEVICE Place(int unit, int width, int vectors, int kWidth) {
    image = blockIdx.y;
    channel = unit % vectors * kWidth;
    j = unit / vectors % width;
    i = unit / vectors / width;
  }
};

#define FOR_UNITS(unit, count)                                                                             \
  for (int unit = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); unit < (count); \
       unit += static_cast<int>(gridDim.x) * kThreads)

// The batch norm that x still waits for: scale and shift [G, channels], or null.
struct Deferred {
  const float *scale, *shift;
  int64_t groupImages;
  bool relu;
};

// index: the tap of the window that held the maximum, row by row, counted with those in the padding; null when no gradient is wanted.
template <class T, int kWidth, class Index>
__global__ void __launch_bounds__(kThreads) maxKernel(T* y, Index* index, const T* x, Pool pool, Deferred norm) {
  const int vectors = pool.channels / kWidth;
  FOR_UNITS(unit, pool.y.out * pool.x.out * vectors) {
    const Place at(unit, pool.x.out, vectors, kWidth);
    const Window rows = pool.y.window(at.i), columns = pool.x.window(at.j);
    const int top = at.i * pool.y.stride - pool.y.padding, left = at.j * pool.x.stride - pool.x.padding;
    float best[kWidth];
    int where[kWidth];
    float scale[kWidth], shift[kWidth];
    for (int k = 0; k < kWidth && norm.scale != nullptr; ++k) {
      scale[k] = norm.scale[at.image / norm.groupImages * pool.channels + at.channel + k];
      shift[k] = norm.shift[at.image / norm.groupImages * pool.channels + at.channel + k];
    }
    for (int k = 0; k < kWidth; ++k) {
      best[k] = -INFINITY;
      where[k] = (rows.begin - top) * pool.x.kernel + columns.begin - left;
    }
    for (int i = rows.begin; i < rows.end; ++i) {
      const T* line = x + ((at.image * pool.y.in + i) * pool.x.in + columns.begin) * pool.channels + at.channel;
      int tap = (i - top) * pool.x.kernel + columns.begin - left;
      for (int j = columns.begin; j < columns.end; ++j, ++tap, line += pool.channels) {
        float values[kWidth];
        unpack(values, loadChunk<T, kWidth>(line));
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          if (norm.scale != nullptr) values[k] = static_cast<float>(T(normalised(values[k], scale[k], shift[k], norm.relu)));
          if (values[k] > best[k] || values[k] != values[k]) {
            best[k] = values[k];
            where[k] = tap;
          }
        }
      }
    }
    const int64_t out = ((at.image * pool.y.out + at.i) * pool.x.out + at.j) * pool.channels + at.channel;
    storeRounded(y + out, best);
    if (index == nullptr) continue;
    Elements<Index, kWidth> taps;
    for (int k = 0; k < kWidth; ++k) taps.v[k] = static_cast<Index>(where[k]);
    store(index + out, taps);
  }
}

// The same where x waits for a norm with ReLU, in bf16: a value and its tap are one integer, the value above, the tap below and counted
// down, so that the larger value wins and the first of equals, in one instruction. Values are not negative, and NaN is above all.
template <bool kIndex>
__global__ void __launch_bounds__(kThreads) maxRectifiedKernel(bf16* y, uint8_t* index, const bf16* x, Pool pool, Deferred norm) {
  constexpr int kWidth = Vector<bf16>::kLength;
  const int vectors = pool.channels / kWidth;
  FOR_UNITS(unit, pool.y.out * pool.x.out * vectors) {
    const Place at(unit, pool.x.out, vectors, kWidth);
    const Window rows = pool.y.window(at.i), columns = pool.x.window(at.j);
    const int top = at.i * pool.y.stride - pool.y.padding, left = at.j * pool.x.stride - pool.x.padding;
    const int64_t vector = at.image / norm.groupImages * pool.channels + at.channel;
    float scale[kWidth], shift[kWidth];
    loadFloats(scale, norm.scale + vector);
    loadFloats(shift, norm.shift + vector);
    int best[kWidth];
    for (int k = 0; k < kWidth; ++k) best[k] = INT_MIN;
    for (int i = rows.begin; i < rows.end; ++i) {
      const bf16* line = x + ((at.image * pool.y.in + i) * pool.x.in + columns.begin) * pool.channels + at.channel;
      unsigned below = static_cast<unsigned>(255 - ((i - top) * pool.x.kernel + columns.begin - left));
      for (int j = columns.begin; j < columns.end; ++j, --below, line += pool.channels) {
        float values[kWidth];
        unpack(values, loadWords(line));
#pragma unroll
        for (int k = 0; k < kWidth; k += 2) {
          const uint32_t pair = packRectified(fmaf(values[k], scale[k], shift[k]), fmaf(values[k + 1], scale[k + 1], shift[k + 1]));
          const int low = static_cast<int>(pair << 16 | below), high = static_cast<int>((pair & 0xffff0000u) | below);
          best[k] = low > best[k] ? low : best[k];
          best[k + 1] = high > best[k + 1] ? high : best[k + 1];
        }
      }
    }
    const int64_t out = ((at.image * pool.y.out + at.i) * pool.x.out + at.j) * pool.channels + at.channel;
    Words<bf16> words;
#pragma unroll
    for (int k = 0; k < kWidth; k += 2)
      words.v[k / 2] = static_cast<uint32_t>(best[k]) >> 16 | (static_cast<uint32_t>(best[k + 1]) & 0xffff0000u);
    storeWords(y + out, words);
    if constexpr (kIndex) {
      Elements<uint8_t, kWidth> taps;
      for (int k = 0; k < kWidth; ++k) taps.v[k] = static_cast<uint8_t>(255 - (best[k] & 255));
      store(index + out, taps);
    }
  }
}

template <class T, int kWidth, class Index>
__global__ void __launch_bounds__(kThreads) maxBackwardKernel(T* dx, const T* dy, const Index* index, Pool pool) {
  const int vectors = pool.channels / kWidth;
  FOR_UNITS(unit, pool.y.in * pool.x.in * vectors) {
    const Place at(unit, pool.x.in, vectors, kWidth);
    const Window rows = pool.y.outputs(at.i), columns = pool.x.outputs(at.j);
    float sum[kWidth] = {};
    for (int i = rows.begin; i < rows.end; ++i)
      for (int j = columns.begin; j < columns.end; ++j) {
        const int64_t from = ((at.image * pool.y.out + i) * pool.x.out + j) * pool.channels + at.channel;
        const int mine = (at.i - i * pool.y.stride + pool.y.padding) * pool.x.kernel + at.j - j * pool.x.stride + pool.x.padding;
        float gradient[kWidth];
        unpack(gradient, loadChunk<T, kWidth>(dy + from));
        const auto taps = load<Index, kWidth>(index + from);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum[k] += static_cast<int>(taps.v[k]) == mine ? gradient[k] : 0.0f;
      }
    storeRounded(dx + ((at.image * pool.y.in + at.i) * pool.x.in + at.j) * pool.channels + at.channel, sum);
  }
}

// The same for windows of 3 that step by 2 from a padding of 1, as a ResNet's: input 2 i is tap 1 of window i alone, input 2 i + 1 is tap 2
// of it and tap 0 of the next. A thread makes two by two inputs, whose windows are at most four and are read once.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) maxBackwardPairsKernel(T* dx, const T* dy, const uint8_t* index, Pool pool) {
  const int vectors = pool.channels / kWidth, pairsY = (pool.y.in + 1) / 2, pairsX = (pool.x.in + 1) / 2;
  FOR_UNITS(unit, pairsY * pairsX * vectors) {
    const Place at(unit, pairsX, vectors, kWidth);
    float sum[2][2][kWidth] = {};
#pragma unroll
    for (int a = 0; a < 2; ++a)
#pragma unroll
      for (int b = 0; b < 2; ++b) {
        if (at.i + a >= pool.y.out || at.j + b >= pool.x.out) continue;
        const int64_t from = ((at.image * pool.y.out + at.i + a) * pool.x.out + at.j + b) * pool.channels + at.channel;
        float gradient[kWidth];
        unpack(gradient, loadChunk<T, kWidth>(dy + from));
        const auto taps = load<uint8_t, kWidth>(index + from);
#pragma unroll
        for (int p = a; p < 2; ++p)
#pragma unroll
          for (int q = b; q < 2; ++q) {
            const int mine = (a == 0 ? p + 1 : 0) * 3 + (b == 0 ? q + 1 : 0);
#pragma unroll
            for (int k = 0; k < kWidth; ++k) sum[p][q][k] += static_cast<int>(taps.v[k]) == mine ? gradient[k] : 0.0f;
          }
      }
#pragma unroll
    for (int p = 0; p < 2; ++p)
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const int i = 2 * at.i + p, j = 2 * at.j + q;
        if (i < pool.y.in && j < pool.x.in)
          storeRounded(dx + ((at.image * pool.y.in + i) * pool.x.in + j) * pool.channels + at.channel, sum[p][q]);
      }
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) averageKernel(T* y, const T* x, Pool pool) {
  const int vectors = pool.channels / kWidth;
  FOR_UNITS(unit, pool.y.out * pool.x.out * vectors) {
    const Place at(unit, pool.x.out, vectors, kWidth);
    const Window rows = pool.y.window(at.i), columns = pool.x.window(at.j);
    float sum[kWidth] = {};
    for (int i = rows.begin; i < rows.end; ++i)
      for (int j = columns.begin; j < columns.end; ++j) {
        const auto in = load<T, kWidth>(x + ((at.image * pool.y.in + i) * pool.x.in + j) * pool.channels + at.channel);
        for (int k = 0; k < kWidth; ++k) sum[k] += static_cast<float>(in.v[k]);
      }
    Elements<T, kWidth> out;
    for (int k = 0; k < kWidth; ++k) out.v[k] = T(sum[k] * pool.scale(rows, columns));
    store(y + ((at.image * pool.y.out + at.i) * pool.x.out + at.j) * pool.channels + at.channel, out);
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) averageBackwardKernel(T* dx, const T* dy, Pool pool) {
  const int vectors = pool.channels / kWidth;
  FOR_UNITS(unit, pool.y.in * pool.x.in * vectors) {
    const Place at(unit, pool.x.in, vectors, kWidth);
    const Window outRows = pool.y.outputs(at.i), outColumns = pool.x.outputs(at.j);
    float sum[kWidth] = {};
    for (int i = outRows.begin; i < outRows.end; ++i) {
      const Window rows = pool.y.window(i);
      if (at.i < rows.begin || at.i >= rows.end) continue;
      for (int j = outColumns.begin; j < outColumns.end; ++j) {
        const Window columns = pool.x.window(j);
        if (at.j < columns.begin || at.j >= columns.end) continue;
        const auto gradient = load<T, kWidth>(dy + ((at.image * pool.y.out + i) * pool.x.out + j) * pool.channels + at.channel);
        const float scale = pool.scale(rows, columns);
        for (int k = 0; k < kWidth; ++k) sum[k] += static_cast<float>(gradient.v[k]) * scale;
      }
    }
    Elements<T, kWidth> out;
    for (int k = 0; k < kWidth; ++k) out.v[k] = T(sum[k]);
    store(dx + ((at.image * pool.y.in + at.i) * pool.x.in + at.j) * pool.channels + at.channel, out);
  }
}

// Blocks along an image, and images.
Grid gridFor(const Call& call, const Tensor& out, int width) {
  return {loopGrid(call, out.dim(1) * out.dim(2) * out.dim(3) / width, kThreads).x, out.dim(0)};
}

}  // namespace

template <class F>
void dispatchIndex(const Call& call, const Tensor* index, F body) {
  if (index != nullptr && index->dtype == DType::i32) return body(int32_t{});
  REQUIRE(index == nullptr || index->dtype == DType::u8, "DTYPE",
          std::string(call.op) + ": expected index u8 or i32 but received " + (index == nullptr ? "" : describe(*index)));
  body(uint8_t{});
}

void maxPool2d(const Call& call) {
  using Names = args::maxPool2d;
  const Tensor &y = call.tensor(Names::y), *index = call.optional(Names::index), &x = call.tensor(Names::x),
               *scale = call.optional(Names::scale), *shift = call.optional(Names::shift);
  Deferred norm{nullptr, nullptr, 1, false};
  if (scale != nullptr) {
    REQUIRE(shift != nullptr, "ARGUMENT", "maxPool2d: expected shift with scale");
    norm = {scale->data<float>(), shift->data<float>(), x.dim(0) / groupsOf(call, "scale", *scale, x), call.flag(Names::relu)};
  }
  const Pool pool(call, Names{}, x, y, "y");
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    if constexpr (std::is_same_v<T, bf16> && kWidth > 1)
      if (norm.scale != nullptr && norm.relu && pool.y.kernel * pool.x.kernel <= 256 && (index == nullptr || index->dtype == DType::u8))
        return launch(call, index == nullptr ? maxRectifiedKernel<false> : maxRectifiedKernel<true>, gridFor(call, y, kWidth), kThreads, 0,
                      y.data<bf16>(), optionalData<uint8_t>(index), x.data<bf16>(), pool, norm);
    dispatchIndex(call, index, [&](auto tap) {
      using Index = decltype(tap);
      launch(call, maxKernel<T, kWidth, Index>, gridFor(call, y, kWidth), kThreads, 0, y.data<T>(), optionalData<Index>(index), x.data<T>(),
             pool, norm);
    });
  });
}

void maxPool2dBackward(const Call& call) {
  using Names = args::maxPool2dBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy), &index = call.tensor(Names::index);
  const Pool pool(call, Names{}, dx, dy, "dy");
  dispatchWidth(call, dx, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    dispatchIndex(call, &index, [&](auto tap) {
      using Index = decltype(tap);
      if constexpr (std::is_same_v<Index, uint8_t>) {
        const auto steps = [](const Axis& axis) { return axis.kernel == 3 && axis.stride == 2 && axis.padding == 1; };
        if (steps(pool.y) && steps(pool.x)) {
          const int64_t pairs = int64_t{(pool.y.in + 1) / 2} * ((pool.x.in + 1) / 2) * (pool.channels / kWidth);
          return launch(call, maxBackwardPairsKernel<T, kWidth>, Grid{loopGrid(call, pairs, kThreads).x, dx.dim(0)}, kThreads, 0,
                        dx.data<T>(), dy.data<T>(), index.data<Index>(), pool);
        }
      }
      launch(call, maxBackwardKernel<T, kWidth, Index>, gridFor(call, dx, kWidth), kThreads, 0, dx.data<T>(), dy.data<T>(),
             index.data<Index>(), pool);
    });
  });
}

void avgPool2d(const Call& call) {
  using Names = args::avgPool2d;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  const Pool pool(call, Names{}, x, y, "y", call.flag(Names::adaptive), call.flag(Names::countPadding));
  dispatchWidth(call, x, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    launch(call, averageKernel<T, kWidth>, gridFor(call, y, kWidth), kThreads, 0, y.data<T>(), x.data<T>(), pool);
  });
}

void avgPool2dBackward(const Call& call) {
  using Names = args::avgPool2dBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy);
  const Pool pool(call, Names{}, dx, dy, "dy", call.flag(Names::adaptive), call.flag(Names::countPadding));
  dispatchWidth(call, dx, [&](auto zero, auto width) {
    using T = decltype(zero);
    constexpr int kWidth = decltype(width)::value;
    launch(call, averageBackwardKernel<T, kWidth>, gridFor(call, dx, kWidth), kThreads, 0, dx.data<T>(), dy.data<T>(), pool);
  });
}

}  // namespace densecl::cuda

// Ops that visit each element once. All are bound by memory: 16 bytes a thread and access, a grid that loops over the rest.
#include <cmath>

#include "../core/lists.h"
#include "../core/random.h"
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kThreads = 256;

// out[i] = op(a[i], b[i], i); b may be a
template <class T, class Op>
__global__ void __launch_bounds__(kThreads) mapKernel(T* out, const T* a, const T* b, int64_t count, Op op) {
  constexpr int kWidth = Vector<T>::kLength;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, step = static_cast<int64_t>(gridDim.x) * kThreads,
                vectors = count / kWidth;
  for (int64_t i = first; i < vectors; i += step) {
    const auto x = load<T, kWidth>(a + i * kWidth), y = load<T, kWidth>(b + i * kWidth);
    Elements<T, kWidth> result;
    for (int k = 0; k < kWidth; ++k) result.v[k] = T(op(static_cast<float>(x.v[k]), static_cast<float>(y.v[k]), i * kWidth + k));
    store(out + i * kWidth, result);
  }
  for (int64_t i = vectors * kWidth + first; i < count; i += step) out[i] = T(op(static_cast<float>(a[i]), static_cast<float>(b[i]), i));
}

template <class Op>
void map(const Call& call, const Tensor& out, const Tensor& a, const Tensor& b, Op op) {
  dispatchFloat(call, out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t count = out.size();
    launch(call, mapKernel<T, Op>, loopGrid(call, ceilDiv(count, Vector<T>::kLength), kThreads), kThreads, 0, out.data<T>(), a.data<T>(),
           b.data<T>(), count, op);
  });
}

struct Add {
  DEVICE float operator()(float a, float b, int64_t) const { return a + b; }
};
// NaN stays NaN.
struct Relu {
  DEVICE float operator()(float a, float, int64_t) const { return a < 0 ? 0.0f : a; }
};
struct ReluBackward {
  DEVICE float operator()(float dy, float y, int64_t) const { return y > 0 ? dy : 0.0f; }
};
struct Scale {
  float constant;
  const float* factor;
  DEVICE float operator()(float a, float, int64_t) const { return a * (factor == nullptr ? constant : constant * *factor); }
};
struct Dropout {
  uint64_t seed, threshold;
  float scale;
  int64_t image, channels;
  DEVICE float operator()(float a, float, int64_t i) const {
    return bitsAt(seed, static_cast<uint64_t>(i / image * channels + i % channels)) >= threshold ? a * scale : 0.0f;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) fillKernel(T* out, int64_t count, T value) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads)
    out[i] = value;
}

template <class To, class From>
__global__ void __launch_bounds__(kThreads) convertKernel(To* out, const From* in, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads)
    out[i] = static_cast<To>(in[i]);
}

template <class F>
void dispatchAny(const Call& call, DType dtype, F body) {
  switch (dtype) {
    case DType::f32: return body(float{});
    case DType::i32: return body(int32_t{});
    case DType::u8: return body(uint8_t{});
    case DType::bf16: return body(bf16{});
    case DType::f64: throw Error("DTYPE", std::string(call.op) + ": f64 runs on the CPU only");
  }
}

struct Strides {
  int64_t out[4], in[4];  // in: of the axis of `in` that becomes each axis of `out`
};

// Bytes are moved without a look at their type.
template <class Word>
__global__ void __launch_bounds__(kThreads) permuteKernel(Word* out, const Word* in, int64_t count, Strides strides) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += static_cast<int64_t>(gridDim.x) * kThreads) {
    int64_t rest = i, from = 0;
    for (int axis = 0; axis < 4; ++axis) {
      from += rest / strides.out[axis] * strides.in[axis];
      rest %= strides.out[axis];
    }
    out[i] = in[from];
  }
}

// to[r, toFirst + c] = from[r, fromFirst + c] for c < width
template <class Word>
__global__ void __launch_bounds__(kThreads) copyColumnsKernel(Word* to, const Word* from, int64_t rows, int64_t width, int64_t toStride,
                                                              int64_t toFirst, int64_t fromStride, int64_t fromFirst) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < rows * width;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    to[i / width * toStride + toFirst + i % width] = from[i / width * fromStride + fromFirst + i % width];
}

template <class F>
void dispatchWord(DType dtype, F body) {
  switch (itemSize(dtype)) {
    case 1: return body(uint8_t{});
    case 2: return body(uint16_t{});
    case 4: return body(uint32_t{});
    default: return body(uint64_t{});
  }
}

}  // namespace

void fill(const Call& call) {
  const Tensor& out = call.tensor(args::fill::y);
  dispatchAny(call, out.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, fillKernel<T>, loopGrid(call, out.size(), kThreads), kThreads, 0, out.data<T>(), out.size(),
           static_cast<T>(call.number(args::fill::value)));
  });
}

void convert(const Call& call) { convertTensor(call, call.tensor(args::convert::y), call.tensor(args::convert::x)); }

void convertTensor(const Call& call, const Tensor& out, const Tensor& in) {
  dispatchAny(call, out.dtype, [&](auto to) {
    dispatchAny(call, in.dtype, [&](auto from) {
      using To = decltype(to);
      using From = decltype(from);
      launch(call, convertKernel<To, From>, loopGrid(call, out.size(), kThreads), kThreads, 0, out.data<To>(), in.data<From>(), out.size());
    });
  });
}

void permute(const Call& call) {
  const Tensor &out = call.tensor(args::permute::y), &in = call.tensor(args::permute::x);
  const std::vector<int64_t> order = permutation(call, in, out);
  Strides strides;
  int64_t of[4] = {1, 1, 1, 1};
  strides.out[3] = 1;
  for (int i = 2; i >= 0; --i) {
    of[i] = of[i + 1] * in.dim(i + 1);
    strides.out[i] = strides.out[i + 1] * out.dim(i + 1);
  }
  for (int i = 0; i < 4; ++i) strides.in[i] = of[order[i]];
  dispatchWord(out.dtype, [&](auto zero) {
    using Word = decltype(zero);
    launch(call, permuteKernel<Word>, loopGrid(call, out.size(), kThreads), kThreads, 0, out.data<Word>(), in.data<Word>(), out.size(),
           strides);
  });
}

void add(const Call& call) { map(call, call.tensor(args::add::y), call.tensor(args::add::a), call.tensor(args::add::b), Add{}); }

void scale(const Call& call) {
  using args::scale;
  const Tensor &y = call.tensor(scale::y), &x = call.tensor(scale::x), *factor = call.optional(scale::factor);
  map(call, y, x, x, Scale{static_cast<float>(call.number(scale::number)), optionalData<float>(factor)});
}

void relu(const Call& call) {
  const Tensor &y = call.tensor(args::relu::y), &x = call.tensor(args::relu::x);
  map(call, y, x, x, Relu{});
}

void reluBackward(const Call& call) {
  map(call, call.tensor(args::reluBackward::dx), call.tensor(args::reluBackward::dy), call.tensor(args::reluBackward::y), ReluBackward{});
}

void dropout(const Call& call) {
  using Names = args::dropout;
  const double p = call.number(Names::probability);
  const auto threshold = static_cast<uint64_t>(std::ceil(p * 0x1.0p53));
  map(call, call.tensor(Names::y), call.tensor(Names::x), call.tensor(Names::x),
      Dropout{static_cast<uint64_t>(call.number(Names::seed)), threshold, static_cast<float>(p < 1 ? 1 / (1 - p) : 0),
              call.integer(Names::image), call.integer(Names::channels)});
}

void concat(const Call& call) {
  const Tensor& out = call.tensor(args::concat::y);
  int64_t first = 0;
  for (const Tensor* part : concatenated(call, out)) {
    const Tensor& in = *part;
    const int64_t at = first;
    dispatchWord(out.dtype, [&](auto zero) {
      using Word = decltype(zero);
      launch(call, copyColumnsKernel<Word>, loopGrid(call, in.size(), kThreads), kThreads, 0, out.data<Word>(), in.data<Word>(), in.rows(),
             in.columns(), out.columns(), at, in.columns(), 0);
    });
    first += in.columns();
  }
}

void concatBackward(const Call& call) {
  const Tensor &dx = call.tensor(args::concatBackward::dx), &dy = call.tensor(args::concatBackward::dy);
  dispatchWord(dx.dtype, [&](auto zero) {
    using Word = decltype(zero);
    launch(call, copyColumnsKernel<Word>, loopGrid(call, dx.size(), kThreads), kThreads, 0, dx.data<Word>(), dy.data<Word>(), dx.rows(),
           dx.columns(), dx.columns(), 0, dy.columns(), call.integer(args::concatBackward::first));
  });
}

}  // namespace densecl::cuda

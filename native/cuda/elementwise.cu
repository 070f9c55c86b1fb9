// Ops that visit each element once. All are bound by memory: 16 bytes a thread and access, a grid that loops over the rest.
#include <cmath>

#include "../core/random.h"
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

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
    case DType::e4m3: return body(e4m3{});
    case DType::f64: throw Error("DTYPE", std::string(call.op) + ": f64 runs on the CPU only");
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

}  // namespace densecl::cuda

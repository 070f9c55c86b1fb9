// Ops that visit each element once: fill, convert, add, scale, relu, dropout.
#include "../core/e4m3.h"
#include "../core/parallel.h"
#include "../core/random.h"
#include "isa.h"
#include "ops.h"
#include "widen.h"

namespace densecl::cpu {
namespace {

constexpr int64_t kGrain = 1 << 14;

template <class F>
void dispatchAny(DType dtype, F body) {
  switch (dtype) {
    case DType::f32: return body(float{});
    case DType::f64: return body(double{});
    case DType::i32: return body(int32_t{});
    case DType::u8: return body(uint8_t{});
    case DType::bf16: return body(bf16{});
    case DType::e4m3: return body(e4m3{});
  }
}

template <class To, class From>
void convertValues(To* to, const From* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
}
void convertValues(float* to, const bf16* from, int64_t count) { widen(to, from, count); }
void convertValues(bf16* to, const float* from, int64_t count) { narrow(to, from, count); }

template <class T>
struct Pair {
  T* __restrict out;
  const T* a;
  const T* b;
  int64_t begin, end;
};

template <class T>
INLINE void addLoop(const Pair<T>& job) {
  for (int64_t i = job.begin; i < job.end; ++i) job.out[i] = T(Accumulator<T>(job.a[i]) + job.b[i]);
}
SIMD_LOOP_STORED(add, Pair)

// NaN stays NaN, as in PyTorch: a hidden NaN would be found too late.
template <class T>
INLINE void reluLoop(const Pair<T>& job) {
  using A = Accumulator<T>;
  for (int64_t i = job.begin; i < job.end; ++i) job.out[i] = T(job.a[i] < A{0} ? A{0} : A(job.a[i]));
}
SIMD_LOOP_STORED(relu, Pair)

template <class T>
INLINE void reluBackwardLoop(const Pair<T>& job) {
  using A = Accumulator<T>;
  for (int64_t i = job.begin; i < job.end; ++i) job.out[i] = T(job.b[i] > A{0} ? A(job.a[i]) : A{0});
}
SIMD_LOOP_STORED(reluBackward, Pair)

template <class Loop>
void elementwise(const Call& call, const Tensor& out, const Tensor& a, const Tensor& b, Loop loop) {
  dispatchStored(call, out.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelRange(out.size(), kGrain,
                  [&](int64_t begin, int64_t end) { loop(Pair<T>{out.data<T>(), a.data<T>(), b.data<T>(), begin, end}); });
  });
}

}  // namespace

void fill(const Call& call) {
  const Tensor& out = call.tensor(args::fill::y);
  dispatchAny(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    std::fill_n(out.data<T>(), out.size(), static_cast<T>(call.number(args::fill::value)));
  });
}

void convert(const Call& call) {
  const Tensor &out = call.tensor(args::convert::y), &in = call.tensor(args::convert::x);
  dispatchAny(out.dtype, [&](auto to) {
    dispatchAny(in.dtype, [&](auto from) {
      auto* target = out.data<decltype(to)>();
      const auto* source = in.data<decltype(from)>();
      parallelRange(out.size(), kGrain, [&](int64_t begin, int64_t end) { convertValues(target + begin, source + begin, end - begin); });
    });
  });
}

void add(const Call& call) {
  elementwise(call, call.tensor(args::add::y), call.tensor(args::add::a), call.tensor(args::add::b), [](const auto& job) { add(job); });
}

// y = x * number, and times the one element of factor.
void scale(const Call& call) {
  using args::scale;
  const Tensor &out = call.tensor(scale::y), &in = call.tensor(scale::x), *factor = call.optional(scale::factor);
  REQUIRE(factor == nullptr || factor->size() == 1, "SHAPE",
          "scale: expected factor of one element but received " + (factor == nullptr ? "" : describe(*factor)));
  dispatchFloat(call, out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T value = static_cast<T>(call.number(scale::number)) * (factor == nullptr ? T{1} : *factor->data<T>());
    parallelRange(out.size(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out.data<T>()[i] = in.data<T>()[i] * value;
    });
  });
}

void relu(const Call& call) {
  const Tensor &y = call.tensor(args::relu::y), &x = call.tensor(args::relu::x);
  elementwise(call, y, x, x, [](const auto& job) { relu(job); });
}

void reluBackward(const Call& call) {
  elementwise(call, call.tensor(args::reluBackward::dx), call.tensor(args::reluBackward::dy), call.tensor(args::reluBackward::y),
              [](const auto& job) { reluBackward(job); });
}

// y = x * keep / (1 - probability), where keep is a function of (seed, draw) and
// element i has draw i / image * channels + i % channels: one for each element with 1 and 1, one for each channel of each image with
// their sizes. The backward pass is the same op on dy.
void dropout(const Call& call) {
  using Names = args::dropout;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  const double p = call.number(Names::probability);
  const uint64_t seed = static_cast<uint64_t>(call.number(Names::seed));
  const int64_t image = call.integer(Names::image), channels = call.integer(Names::channels);
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T scale = static_cast<T>(p < 1 ? 1 / (1 - p) : 0);
    parallelRange(y.size(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        y.data<T>()[i] = uniformAt(seed, i / image * channels + i % channels) >= p ? x.data<T>()[i] * scale : T{0};
    });
  });
}

}  // namespace densecl::cpu

// Ops that visit each element once: fill, convert, permute (axes 0..3), add, scale, relu, concat, dropout.
#include <cstring>

#include "../core/bf16.h"
#include "../core/lists.h"
#include "../core/parallel.h"
#include "../core/random.h"
#include "isa.h"
#include "ops.h"

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
  }
}

template <class T>
struct Pair {
  T* __restrict out;
  const T* a;
  const T* b;
  int64_t begin, end;
};

template <class T>
INLINE void addLoop(const Pair<T>& job) {
  for (int64_t i = job.begin; i < job.end; ++i) job.out[i] = job.a[i] + job.b[i];
}
SIMD_LOOP(add, Pair)

// NaN stays NaN, as in PyTorch: a hidden NaN would be found too late.
template <class T>
INLINE void reluLoop(const Pair<T>& job) {
  for (int64_t i = job.begin; i < job.end; ++i) job.out[i] = job.a[i] < T{0} ? T{0} : job.a[i];
}
SIMD_LOOP(relu, Pair)

template <class T>
INLINE void reluBackwardLoop(const Pair<T>& job) {
  for (int64_t i = job.begin; i < job.end; ++i) job.out[i] = job.b[i] > T{0} ? job.a[i] : T{0};
}
SIMD_LOOP(reluBackward, Pair)

template <class Loop>
void elementwise(const Call& call, const Tensor& out, const Tensor& a, const Tensor& b, Loop loop) {
  dispatchFloat(call, out.dtype, [&](auto zero) {
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
      for (int64_t i = 0; i < out.size(); ++i) target[i] = static_cast<decltype(to)>(source[i]);
    });
  });
}

// Axis order[i] of x becomes axis i of y.
void permute(const Call& call) {
  const Tensor &out = call.tensor(args::permute::y), &in = call.tensor(args::permute::x);
  const std::vector<int64_t> order = permutation(call, in, out);
  int64_t strides[4], step[4];
  strides[3] = 1;
  for (int i = 2; i >= 0; --i) strides[i] = strides[i + 1] * in.dim(i + 1);
  for (int i = 0; i < 4; ++i) step[i] = strides[order[i]];
  dispatchAny(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* target = out.data<T>();
    const T* source = in.data<T>();
    for (int64_t a = 0; a < out.dim(0); ++a)
      for (int64_t b = 0; b < out.dim(1); ++b)
        for (int64_t c = 0; c < out.dim(2); ++c)
          for (int64_t d = 0; d < out.dim(3); ++d) *target++ = source[a * step[0] + b * step[1] + c * step[2] + d * step[3]];
  });
}

void add(const Call& call) {
  elementwise(call, call.tensor(args::add::y), call.tensor(args::add::a), call.tensor(args::add::b), [](const auto& job) { add(job); });
}

// y = x * number, and times the one element of factor.
void scale(const Call& call) {
  using args::scale;
  const Tensor &out = call.tensor(scale::y), &in = call.tensor(scale::x), *factor = call.optional(scale::factor);
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

// y [..., sum of C_i] has the channels of xs [..., C_i], one after another.
void concat(const Call& call) {
  const Tensor& out = call.tensor(args::concat::y);
  const std::vector<const Tensor*> parts = concatenated(call, out);
  int64_t offset = 0;
  for (const Tensor* part : parts) {
    const Tensor& in = *part;
    const size_t width = in.columns() * itemSize(in.dtype), stride = out.columns() * itemSize(out.dtype);
    for (int64_t r = 0; r < in.rows(); ++r)
      std::memcpy(static_cast<char*>(out.raw()) + r * stride + offset, static_cast<char*>(in.raw()) + r * width, width);
    offset += width;
  }
}

// dx is the channels of dy from `first` on.
void concatBackward(const Call& call) {
  const Tensor &dx = call.tensor(args::concatBackward::dx), &dy = call.tensor(args::concatBackward::dy);
  const size_t width = dx.columns() * itemSize(dx.dtype), stride = dy.columns() * itemSize(dy.dtype);
  const int64_t first = call.integer(args::concatBackward::first);
  require(first + dx.columns() <= dy.columns(), "SHAPE",
          "concatBackward: expected the channels of dx " + describe(dx) + " from " + std::to_string(first) + " on among those of dy " +
              describe(dy));
  const size_t offset = first * itemSize(dx.dtype);
  for (int64_t r = 0; r < dx.rows(); ++r)
    std::memcpy(static_cast<char*>(dx.raw()) + r * width, static_cast<char*>(dy.raw()) + r * stride + offset, width);
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

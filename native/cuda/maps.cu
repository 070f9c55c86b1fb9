// Elementwise ops, of the formulas in ../core/maps.def: binary and comparisons with broadcasting, where, unary and its gradient. All are
// bound by memory: a kernel of each serves every formula and chooses by `kind`, which all threads have in common.
#include <type_traits>

#include "../core/broadcast.h"
#include "kernel/math.cuh"
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

enum BinaryKind {
#define BINARY(name, value) kBinary_##name,
#include "../core/maps.def"
  kBinaryKinds
};
enum CompareKind {
#define COMPARISON(name, value) kCompare_##name,
#include "../core/maps.def"
  kCompareKinds
};
enum UnaryKind {
#define UNARY(name, value, derivative) kUnary_##name,
#include "../core/maps.def"
  kUnaryKinds
};

// What values of a dtype are computed in.
template <class T>
using Computed = std::conditional_t<std::is_integral_v<T>, int32_t, float>;

struct Binary {
  template <class T, class To, int kWidth>
  static DEVICE void of(int kind, To (&out)[kWidth], const T (&x)[kWidth], const T (&z)[kWidth]) {
    switch (kind) {
#define BINARY(name, value)            \
  case kBinary_##name:                 \
    for (int k = 0; k < kWidth; ++k) { \
      const T a = x[k], b = z[k];      \
      out[k] = To(value);              \
    }                                  \
    return;
#include "../core/maps.def"
    }
  }
};

struct Compare {
  template <class T, class To, int kWidth>
  static DEVICE void of(int kind, To (&out)[kWidth], const T (&x)[kWidth], const T (&z)[kWidth]) {
    switch (kind) {
#define COMPARISON(name, value)        \
  case kCompare_##name:                \
    for (int k = 0; k < kWidth; ++k) { \
      const T a = x[k], b = z[k];      \
      out[k] = (value) ? 1 : 0;        \
    }                                  \
    return;
#include "../core/maps.def"
    }
  }
};

// Where element i of the loop, counted in groups of kWidth along the innermost dimension, is in each operand.
template <int kWidth, int kOperands>
DEVICE void locate(int64_t (&offsets)[kOperands], const StridedLoop<kOperands>& loop, int64_t i) {
  for (int k = 0; k < kOperands; ++k) offsets[k] = 0;
  for (int axis = loop.rank - 1; axis >= 0; --axis) {
    const int64_t size = axis == loop.rank - 1 ? loop.size[axis] / kWidth : loop.size[axis];
    const int64_t index = (axis == 0 ? i : i % size) * (axis == loop.rank - 1 ? kWidth : 1);
    for (int k = 0; k < kOperands; ++k) offsets[k] += index * loop.stride[axis][k];
    if (axis > 0) i /= size;
  }
}

// kWidth values along the innermost dimension: neighbours, or one value kWidth times.
template <class T, int kWidth>
DEVICE void loadSpread(Computed<T> (&to)[kWidth], const T* at, int64_t stride) {
  if (stride == 0) {
    const auto value = static_cast<Computed<T>>(*at);
    for (int k = 0; k < kWidth; ++k) to[k] = value;
  } else {
    const auto values = load<T, kWidth>(at);
    for (int k = 0; k < kWidth; ++k) to[k] = static_cast<Computed<T>>(values.v[k]);
  }
}

template <class Op, class Out, class T, int kWidth>
__global__ void __launch_bounds__(kThreads) binaryKernel(Out* y, const T* a, const T* b, StridedLoop<2> loop, int kind) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < loop.count / kWidth; i += step) {
    int64_t offsets[2];
    locate<kWidth>(offsets, loop, i);
    Computed<T> x[kWidth], z[kWidth];
    loadSpread<T, kWidth>(x, a + offsets[0], loop.stride[loop.rank - 1][0]);
    loadSpread<T, kWidth>(z, b + offsets[1], loop.stride[loop.rank - 1][1]);
    Elements<Out, kWidth> out{};
    Op::of(kind, out.v, x, z);
    store(y + i * kWidth, out);
  }
}

template <class Op, class Out, class T>
void launchBinary(const Call& call, const Tensor& y, const Tensor& a, const Tensor& b, int64_t kind) {
  const auto loop = stridedLoop<2>(call.op, y.shape, {&a.shape, &b.shape});
  const auto run = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    launch(call, binaryKernel<Op, Out, T, kWidth>, loopGrid(call, loop.count / kWidth, kThreads), kThreads, 0, y.data<Out>(), a.data<T>(),
           b.data<T>(), loop, static_cast<int>(kind));
  };
  constexpr int kVector = Vector<T>::kLength;
  if (loop.inner() % kVector == 0)
    run(std::integral_constant<int, kVector>{});
  else
    run(std::integral_constant<int, 1>{});
}

template <class Word>
__global__ void __launch_bounds__(kThreads)
    whereKernel(Word* y, const uint8_t* condition, const Word* a, const Word* b, StridedLoop<3> loop) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < loop.count; i += step) {
    int64_t offsets[3];
    locate<1>(offsets, loop, i);
    y[i] = condition[offsets[0]] != 0 ? a[offsets[1]] : b[offsets[2]];
  }
}

// f(x), or dy f'(saved) where dy is given.
template <class T, int kWidth>
DEVICE void unaryValues(T (&out)[kWidth], const T (&in)[kWidth], int kind) {
  switch (kind) {
#define UNARY(name, value, derivative) \
  case kUnary_##name:                  \
    for (int k = 0; k < kWidth; ++k) { \
      const T x = in[k];               \
      out[k] = value;                  \
    }                                  \
    return;
#include "../core/maps.def"
  }
}
template <class T, int kWidth>
DEVICE void unarySlopes(T (&out)[kWidth], const T (&saved)[kWidth], int kind) {
  switch (kind) {
#define UNARY_X(name, value, derivative) \
  case kUnary_##name:                    \
    for (int k = 0; k < kWidth; ++k) {   \
      const T x = saved[k];              \
      out[k] = derivative;               \
    }                                    \
    return;
#define UNARY_Y(name, value, derivative) \
  case kUnary_##name:                    \
    for (int k = 0; k < kWidth; ++k) {   \
      const T y = saved[k];              \
      out[k] = derivative;               \
    }                                    \
    return;
#include "../core/maps.def"
  }
}

// out = f(x), or dy f'(x or y): `values` is x, or what was saved.
template <class T, int kWidth>
DEVICE void mapChunk(T* out, const T* values, const T* dy, int kind) {
  float x[kWidth], result[kWidth] = {};
  loadSpread<T, kWidth>(x, values, 1);
  if (dy == nullptr) {
    unaryValues(result, x, kind);
  } else {
    float gradient[kWidth];
    loadSpread<T, kWidth>(gradient, dy, 1);
    unarySlopes(result, x, kind);
    for (int k = 0; k < kWidth; ++k) result[k] *= gradient[k];
  }
  Elements<T, kWidth> rounded;
  for (int k = 0; k < kWidth; ++k) rounded.v[k] = T(result[k]);
  store(out, rounded);
}

template <class T>
__global__ void __launch_bounds__(kThreads) unaryKernel(T* out, const T* values, const T* dy, int64_t count, int kind) {
  constexpr int kWidth = Vector<T>::kLength;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, step = static_cast<int64_t>(gridDim.x) * kThreads,
                vectors = count / kWidth;
  for (int64_t i = first; i < vectors; i += step)
    mapChunk<T, kWidth>(out + i * kWidth, values + i * kWidth, dy == nullptr ? nullptr : dy + i * kWidth, kind);
  for (int64_t i = vectors * kWidth + first; i < count; i += step)
    mapChunk<T, 1>(out + i, values + i, dy == nullptr ? nullptr : dy + i, kind);
}

void launchUnary(const Call& call, const Tensor& out, const Tensor& values, const Tensor* dy, int64_t kind) {
  REQUIRE(kind < kUnaryKinds, "ARGUMENT", std::string(call.op) + ": there is no kind " + std::to_string(kind));
  dispatchFloat(call, out.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch(call, unaryKernel<T>, loopGrid(call, ceilDiv(out.size(), Vector<T>::kLength), kThreads), kThreads, 0, out.data<T>(),
           values.data<T>(), optionalData<T>(dy), out.size(), static_cast<int>(kind));
  });
}

}  // namespace

void binary(const Call& call) {
  using args::binary;
  const Tensor &y = call.tensor(binary::y), &a = call.tensor(binary::a), &b = call.tensor(binary::b);
  const int64_t kind = call.integer(binary::kind);
  REQUIRE(kind < kBinaryKinds, "ARGUMENT", "binary: there is no kind " + std::to_string(kind));
  dispatchFloat(call, y.dtype, [&](auto zero) { launchBinary<Binary, decltype(zero), decltype(zero)>(call, y, a, b, kind); });
}

void compare(const Call& call) {
  using args::compare;
  const Tensor &y = call.tensor(compare::y), &a = call.tensor(compare::a), &b = call.tensor(compare::b);
  const int64_t kind = call.integer(compare::kind);
  REQUIRE(kind < kCompareKinds, "ARGUMENT", "compare: there is no kind " + std::to_string(kind));
  const auto run = [&](auto zero) { launchBinary<Compare, uint8_t, decltype(zero)>(call, y, a, b, kind); };
  if (a.dtype == DType::i32) return run(int32_t{});
  if (a.dtype == DType::u8) return run(uint8_t{});
  dispatchFloat(call, a.dtype, run);
}

void where(const Call& call) {
  using args::where;
  const Tensor &y = call.tensor(where::y), &condition = call.tensor(where::condition), &a = call.tensor(where::a),
               &b = call.tensor(where::b);
  const auto run = [&](auto word) {
    using Word = decltype(word);
    launch(call, whereKernel<Word>, loopGrid(call, y.size(), kThreads), kThreads, 0, y.data<Word>(), condition.data<uint8_t>(),
           a.data<Word>(), b.data<Word>(), stridedLoop<3>(call.op, y.shape, {&condition.shape, &a.shape, &b.shape}));
  };
  switch (itemSize(y.dtype)) {
    case 1: return run(uint8_t{});
    case 2: return run(uint16_t{});
    case 4: return run(uint32_t{});
    default: return run(uint64_t{});
  }
}

void unary(const Call& call) {
  using args::unary;
  launchUnary(call, call.tensor(unary::y), call.tensor(unary::x), nullptr, call.integer(unary::kind));
}

void unaryBackward(const Call& call) {
  using args::unaryBackward;
  launchUnary(call, call.tensor(unaryBackward::dx), call.tensor(unaryBackward::saved), &call.tensor(unaryBackward::dy),
              call.integer(unaryBackward::kind));
}

}  // namespace densecl::cuda

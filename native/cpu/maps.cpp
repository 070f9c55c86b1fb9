// Elementwise ops, of the formulas in ../core/maps.def: binary and comparisons with broadcasting, where, unary and its gradient.
#include <cstring>

#include "broadcast.h"
#include "math.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

namespace formula {
#define BINARY(name, value)        \
  struct name {                    \
    template <class T>             \
    static INLINE T of(T a, T b) { \
      return value;                \
    }                              \
  };
#define COMPARISON(name, value)       \
  struct name {                       \
    template <class T>                \
    static INLINE bool of(T a, T b) { \
      return value;                   \
    }                                 \
  };
#define UNARY_X(name, value, derivative) \
  struct name {                          \
    template <class T>                   \
    static INLINE T of(T x) {            \
      return value;                      \
    }                                    \
    template <class T>                   \
    static INLINE T slope(T x) {         \
      return derivative;                 \
    }                                    \
  };
#define UNARY_Y(name, value, derivative) \
  struct name {                          \
    template <class T>                   \
    static INLINE T of(T x) {            \
      return value;                      \
    }                                    \
    template <class T>                   \
    static INLINE T slope(T y) {         \
      return derivative;                 \
    }                                    \
  };
#include "../core/maps.def"
}  // namespace formula

// A stretch of a loop: out[i] from a[i stepA] and b[i stepB], steps 0 or 1.
template <class Out, class T>
struct Stretch {
  Out* __restrict out;
  const T *a, *b;
  int64_t count, stepA, stepB;
};

// Bytes that are stored may be the stretch itself: its fields are read before, or comparisons would read them again for every element.
template <class F, class Out, class T>
INLINE void binaryLoop(const Stretch<Out, T>& s) {
  Out* __restrict out = s.out;
  const T *a = s.a, *b = s.b;
  const int64_t count = s.count;
  if (s.stepA != 0 && s.stepB != 0) {
    for (int64_t i = 0; i < count; ++i) out[i] = F::of(a[i], b[i]);
  } else if (s.stepA != 0) {
    const T one = *b;
    for (int64_t i = 0; i < count; ++i) out[i] = F::of(a[i], one);
  } else if (s.stepB != 0) {
    const T one = *a;
    for (int64_t i = 0; i < count; ++i) out[i] = F::of(one, b[i]);
  } else {
    std::fill_n(out, count, static_cast<Out>(F::of(*a, *b)));
  }
}
template <class F, class T>
INLINE void unaryLoop(const Stretch<T, T>& s) {
  for (int64_t i = 0; i < s.count; ++i) s.out[i] = F::of(s.a[i]);
}
// out = a times the derivative at b
template <class F, class T>
INLINE void slopeLoop(const Stretch<T, T>& s) {
  for (int64_t i = 0; i < s.count; ++i) s.out[i] = s.a[i] * F::slope(s.b[i]);
}

// One function for each formula and type, with the tables that a call finds it in.
template <class T>
using Same = void (*)(const Stretch<T, T>&);
template <class T>
using Compare = void (*)(const Stretch<uint8_t, T>&);

#define LOOP(name, loop, Out, T) \
  SIMD(void, name, (const Stretch<Out, T>& s), (s)) { loop<formula::name>(s); }

namespace binaryLoops {
#define BINARY(name, value) LOOP(name, binaryLoop, float, float) LOOP(name, binaryLoop, double, double)
#include "../core/maps.def"
template <class T>
constexpr Same<T> table[] = {
#define BINARY(name, value) name,
#include "../core/maps.def"
};
}  // namespace binaryLoops

namespace compareLoops {
#define COMPARISON(name, value)          \
  LOOP(name, binaryLoop, uint8_t, float) \
  LOOP(name, binaryLoop, uint8_t, double) LOOP(name, binaryLoop, uint8_t, int32_t) LOOP(name, binaryLoop, uint8_t, uint8_t)
#include "../core/maps.def"
template <class T>
constexpr Compare<T> table[] = {
#define COMPARISON(name, value) name,
#include "../core/maps.def"
};
}  // namespace compareLoops

namespace unaryLoops {
#define UNARY(name, value, derivative) LOOP(name, unaryLoop, float, float) LOOP(name, unaryLoop, double, double)
#include "../core/maps.def"
template <class T>
constexpr Same<T> table[] = {
#define UNARY(name, value, derivative) name,
#include "../core/maps.def"
};
}  // namespace unaryLoops

namespace slopeLoops {
#define UNARY(name, value, derivative) LOOP(name, slopeLoop, float, float) LOOP(name, slopeLoop, double, double)
#include "../core/maps.def"
template <class T>
constexpr Same<T> table[] = {
#define UNARY(name, value, derivative) name,
#include "../core/maps.def"
};
}  // namespace slopeLoops

template <class F, size_t kCount>
F kindOf(const Call& call, int64_t kind, F const (&table)[kCount]) {
  REQUIRE(kind < static_cast<int64_t>(kCount), "ARGUMENT", std::string(call.op) + ": there is no kind " + std::to_string(kind));
  return table[kind];
}

// Rows shorter than a few vectors are taken several at a time, an operand that does not lie as they do copied to where it does: a
// repeated row once, others for each block.
constexpr int64_t kNarrow = 64, kBlock = 1024;

template <class T>
class NarrowOperand {
 public:
  NarrowOperand(const T* data, int64_t inner, int64_t rowStep, int64_t step, int64_t rows)
      : data_(data), inner_(inner), rowStep_(rowStep), step_(step), dense_(rowStep == inner) {
    if (rowStep == 0) copy(rows);
  }
  // Rows [first, first + rows), one after another.
  const T* rows(int64_t first, int64_t rows) {
    if (dense_) return data_ + first * inner_;
    if (rowStep_ != 0) {
      from_ = data_ + first * rowStep_;
      copy(rows);
    }
    return buffer_;
  }

 private:
  void copy(int64_t rows) {
    const T* from = from_ == nullptr ? data_ : from_;
    T* to = buffer_;
    for (int64_t r = 0; r < rows; ++r, from += rowStep_)
      for (int64_t i = 0; i < inner_; ++i) *to++ = from[i * step_];
  }
  const T *data_, *from_ = nullptr;
  int64_t inner_, rowStep_, step_;
  bool dense_;
  T buffer_[kBlock];
};

template <class Out, class T>
void runNarrow(const StridedLoop<2>& loop, Out* y, const T* a, const T* b, void (*run)(const Stretch<Out, T>&)) {
  const int64_t inner = loop.inner(), perBlock = kBlock / inner;
  const int64_t *step = loop.stride[loop.rank - 1], *rowStep = loop.stride[loop.rank - 2];
  StridedLoop<2> outer = loop;
  outer.rank -= 1;
  outer.count /= inner;
  parallelRange(outer.count, kGrain / inner, [&](int64_t begin, int64_t end) {
    forStretches(outer, begin, end, [&](int64_t first, const int64_t* offsets, int64_t length) {
      const int64_t most = std::min(length, perBlock);
      NarrowOperand<T> x(a + offsets[0], inner, rowStep[0], step[0], most), z(b + offsets[1], inner, rowStep[1], step[1], most);
      for (int64_t row = 0; row < length; row += perBlock) {
        const int64_t rows = std::min(perBlock, length - row);
        run({y + (first + row) * inner, x.rows(row, rows), z.rows(row, rows), rows * inner, 1, 1});
      }
    });
  });
}

template <class Out, class T>
void runBinary(const Call& call, const Tensor& y, const Tensor& a, const Tensor& b, void (*run)(const Stretch<Out, T>&)) {
  const auto loop = stridedLoop<2>(call.op, y.shape, {&a.shape, &b.shape});
  if (loop.count > 0 && loop.rank > 1 && loop.inner() < kNarrow) return runNarrow(loop, y.data<Out>(), a.data<T>(), b.data<T>(), run);
  const int64_t stepA = loop.stride[loop.rank - 1][0], stepB = loop.stride[loop.rank - 1][1];
  parallelStretches(loop, [&](int64_t first, const int64_t* offsets, int64_t length) {
    run({y.data<Out>() + first, a.data<T>() + offsets[0], b.data<T>() + offsets[1], length, stepA, stepB});
  });
}

template <class T>
void runUnary(const Tensor& y, const Tensor& a, const Tensor& b, Same<T> run) {
  parallelRange(y.size(), kGrain, [&](int64_t begin, int64_t end) {
    run({y.data<T>() + begin, a.data<T>() + begin, b.data<T>() + begin, end - begin, 1, 1});
  });
}

template <class Word>
void select(const Call& call, const Tensor& y, const Tensor& condition, const Tensor& a, const Tensor& b) {
  const auto loop = stridedLoop<3>(call.op, y.shape, {&condition.shape, &a.shape, &b.shape});
  const int64_t* step = loop.stride[loop.rank - 1];
  parallelStretches(loop, [&](int64_t first, const int64_t* offsets, int64_t length) {
    Word* out = y.data<Word>() + first;
    const uint8_t* chosen = condition.data<uint8_t>() + offsets[0];
    const Word *x = a.data<Word>() + offsets[1], *z = b.data<Word>() + offsets[2];
    if (step[0] == 1 && step[1] == 1 && step[2] == 1) {
      for (int64_t i = 0; i < length; ++i) out[i] = chosen[i] != 0 ? x[i] : z[i];
    } else {
      for (int64_t i = 0; i < length; ++i) out[i] = chosen[i * step[0]] != 0 ? x[i * step[1]] : z[i * step[2]];
    }
  });
}

}  // namespace

void binary(const Call& call) {
  using args::binary;
  const Tensor& y = call.tensor(binary::y);
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    runBinary<T, T>(call, y, call.tensor(binary::a), call.tensor(binary::b),
                    kindOf(call, call.integer(binary::kind), binaryLoops::table<T>));
  });
}

void compare(const Call& call) {
  using args::compare;
  const Tensor& a = call.tensor(compare::a);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    runBinary<uint8_t, T>(call, call.tensor(compare::y), a, call.tensor(compare::b),
                          kindOf(call, call.integer(compare::kind), compareLoops::table<T>));
  };
  if (a.dtype == DType::i32) return run(int32_t{});
  if (a.dtype == DType::u8) return run(uint8_t{});
  dispatchFloat(call, a.dtype, run);
}

void where(const Call& call) {
  using args::where;
  const Tensor &y = call.tensor(where::y), &condition = call.tensor(where::condition), &a = call.tensor(where::a),
               &b = call.tensor(where::b);
  switch (itemSize(y.dtype)) {
    case 1: return select<uint8_t>(call, y, condition, a, b);
    case 4: return select<uint32_t>(call, y, condition, a, b);
    case 8: return select<uint64_t>(call, y, condition, a, b);
    default: throw Error("DTYPE", "where: bf16 is computed with on GPUs only");
  }
}

void unary(const Call& call) {
  using args::unary;
  const Tensor &y = call.tensor(unary::y), &x = call.tensor(unary::x);
  dispatchFloat(call, y.dtype, [&](auto zero) {
    using T = decltype(zero);
    runUnary<T>(y, x, x, kindOf(call, call.integer(unary::kind), unaryLoops::table<T>));
  });
}

// dx = dy f'(saved), saved being x or f(x) as maps.def says
void unaryBackward(const Call& call) {
  using args::unaryBackward;
  const Tensor& dx = call.tensor(unaryBackward::dx);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    runUnary<T>(dx, call.tensor(unaryBackward::dy), call.tensor(unaryBackward::saved),
                kindOf(call, call.integer(unaryBackward::kind), slopeLoops::table<T>));
  });
}

}  // namespace densecl::cpu

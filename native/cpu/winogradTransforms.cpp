#include "winogradTransforms.h"

#include <limits>

#include "isa.h"
#include "math.h"

namespace densecl::cpu {
namespace {

// The transforms of a line of a tile that gives `kOutputs` pixels a side.
template <int Outputs>
struct Minimal;

// At the points 0, 1, -1 and infinity.
template <>
struct Minimal<2> {
  static constexpr int kOutputs = 2, kSide = 4, kPoints = 16;
  static INLINE void input(const float (&d)[4], float (&t)[4]) {  // B^T d
    t[0] = d[0] - d[2];
    t[1] = d[1] + d[2];
    t[2] = d[2] - d[1];
    t[3] = d[1] - d[3];
  }
  static INLINE void output(const float (&m)[4], float (&y)[2]) {  // A^T m
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  static INLINE void gradient(const float (&y)[2], float (&t)[4]) {  // A y
    t[0] = y[0];
    t[1] = y[0] + y[1];
    t[2] = y[0] - y[1];
    t[3] = -y[1];
  }
  static INLINE void weight(const float (&w)[3], float (&t)[4]) {  // G w
    t[0] = w[0];
    t[1] = 0.5f * (w[0] + w[2] + w[1]);
    t[2] = 0.5f * (w[0] + w[2] - w[1]);
    t[3] = w[2];
  }
  static INLINE void back(const float (&u)[4], float (&w)[3]) {  // G^T u
    const float half = 0.5f * (u[1] + u[2]);
    w[0] = u[0] + half;
    w[1] = 0.5f * (u[1] - u[2]);
    w[2] = half + u[3];
  }
};

// At 0, the roots of 1/2 and of 2, and infinity: errors are twice those of direct products, where 1, -1, 2 and -2, which are usual, have
// five times those. Numbers of the transforms lie around one, as a point's counterpart is its inverse.
template <>
struct Minimal<4> {
  static constexpr int kOutputs = 4, kSide = 6, kPoints = 36;
  static constexpr float kNear = 0.707106781f, kFar = 1.41421356f;
  static INLINE void input(const float (&d)[6], float (&t)[6]) {
    const float evenNear = d[4] - 2 * d[2], oddNear = d[3] - 2 * d[1], evenFar = d[4] - 0.5f * d[2], oddFar = d[3] - 0.5f * d[1];
    t[0] = d[0] + d[4] - 2.5f * d[2];
    t[1] = evenNear + kNear * oddNear;
    t[2] = evenNear - kNear * oddNear;
    t[3] = evenFar + kFar * oddFar;
    t[4] = evenFar - kFar * oddFar;
    t[5] = d[1] + d[5] - 2.5f * d[3];
  }
  static INLINE void output(const float (&m)[6], float (&y)[4]) {
    const float evenNear = m[1] + m[2], oddNear = m[1] - m[2], evenFar = m[3] + m[4], oddFar = m[3] - m[4];
    y[0] = m[0] + evenNear + evenFar;
    y[1] = kNear * oddNear + kFar * oddFar;
    y[2] = 0.5f * evenNear + 2 * evenFar;
    y[3] = 0.5f * kNear * oddNear + (2 * kFar * oddFar + m[5]);
  }
  static INLINE void gradient(const float (&y)[4], float (&t)[6]) {
    const float evenNear = y[0] + 0.5f * y[2], oddNear = y[1] + 0.5f * y[3], evenFar = y[0] + 2 * y[2], oddFar = y[1] + 2 * y[3];
    t[0] = y[0];
    t[1] = evenNear + kNear * oddNear;
    t[2] = evenNear - kNear * oddNear;
    t[3] = evenFar + kFar * oddFar;
    t[4] = evenFar - kFar * oddFar;
    t[5] = y[3];
  }
  static INLINE void weight(const float (&w)[3], float (&t)[6]) {
    const float evenNear = -2.0f / 3 * w[0] - 1.0f / 3 * w[2], oddNear = -2.0f / 3 * kNear * w[1];
    const float evenFar = 1.0f / 6 * w[0] + 1.0f / 3 * w[2], oddFar = 1.0f / 6 * kFar * w[1];
    t[0] = w[0];
    t[1] = evenNear + oddNear;
    t[2] = evenNear - oddNear;
    t[3] = evenFar + oddFar;
    t[4] = evenFar - oddFar;
    t[5] = w[2];
  }
  static INLINE void back(const float (&u)[6], float (&w)[3]) {
    const float evenNear = u[1] + u[2], oddNear = u[1] - u[2], evenFar = u[3] + u[4], oddFar = u[3] - u[4];
    w[0] = u[0] - 2.0f / 3 * evenNear + 1.0f / 6 * evenFar;
    w[1] = 1.0f / 6 * kFar * oddFar - 2.0f / 3 * kNear * oddNear;
    w[2] = u[5] - 1.0f / 3 * evenNear + 1.0f / 3 * evenFar;
  }
};

// `apply`, which makes To values of From, to a square's columns, and then to its rows: read(row, column) to write(row, column, value).
template <int From, int To, class Apply, class Read, class Write>
INLINE void bothWays(Apply apply, Read read, Write write) {
  float t[To][From];
#pragma GCC unroll 6
  for (int j = 0; j < From; ++j) {
    float in[From], out[To];
#pragma GCC unroll 6
    for (int i = 0; i < From; ++i) in[i] = read(i, j);
    apply(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < To; ++i) t[i][j] = out[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < To; ++i) {
    float out[To];
    apply(t[i], out);
#pragma GCC unroll 6
    for (int j = 0; j < To; ++j) write(i, j, out[j]);
  }
}

INLINE float valueOf(float value) { return value; }
INLINE float valueOf(bf16 value) { return floatOf(static_cast<uint32_t>(value.bits) << 16); }
INLINE void storeAs(float& to, float value) { to = value; }
INLINE void storeAs(bf16& to, float value) { to.bits = roundedBits(value); }
// A value as it is stored.
INLINE float storedAs(float value, float) { return value; }
INLINE float storedAs(float value, bf16) { return floatOf(static_cast<uint32_t>(roundedBits(value)) << 16); }

template <class F, class S>
INLINE void inputLoop(const InputJob<S>& job) {
  constexpr int side = F::kSide;
  const int64_t count = job.last - job.first;
  const S* x[F::kPoints];
  float* out[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) {
    x[i] = job.pixels[i] + job.first;
    out[i] = job.out + i * job.stride;
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < count; ++c)
    bothWays<side, side>([](const float (&d)[side], float (&t)[side]) INLINE_LAMBDA { F::input(d, t); },
                         [&](int i, int j) INLINE_LAMBDA { return valueOf(x[side * i + j][c]); },
                         [&](int i, int j, float value) INLINE_LAMBDA { out[side * i + j][c] = value; });
}
SIMD(void, transformInput2, (const InputJob<float>& job), (job)) { inputLoop<Minimal<2>>(job); }
SIMD(void, transformInput4, (const InputJob<float>& job), (job)) { inputLoop<Minimal<4>>(job); }
SIMD(void, transformInput2, (const InputJob<bf16>& job), (job)) { inputLoop<Minimal<2>>(job); }
SIMD(void, transformInput4, (const InputJob<bf16>& job), (job)) { inputLoop<Minimal<4>>(job); }

template <class F, bool Biased, bool Norms, bool Adds, class S>
INLINE void outputLoop(const OutputJob<S>& job) {
  constexpr int side = F::kSide, outputs = F::kOutputs;
  const float* m[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) m[i] = job.m + i * job.stride;
  const float low = job.relu ? 0 : -std::numeric_limits<float>::infinity();
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c)
    bothWays<side, outputs>([](const float (&in)[side], float (&out)[outputs]) INLINE_LAMBDA { F::output(in, out); },
                            [&](int i, int j) INLINE_LAMBDA { return m[side * i + j][c]; },
                            [&](int i, int j, float y) INLINE_LAMBDA {
                              const int pixel = outputs * i + j;
                              if (Norms) y = storedAs(y, S{}) * job.scale[c];
                              if (Biased) y += job.bias[c];
                              if (Adds) y += valueOf(job.residual[pixel][c]);
                              storeAs(job.pixels[pixel][c], Norms && y < low ? low : y);
                            });
}
template <class F, class S>
INLINE void outputOf(const OutputJob<S>& job) {
  if (job.residual != nullptr) return outputLoop<F, true, true, true>(job);
  if (job.scale != nullptr) return outputLoop<F, true, true, false>(job);
  job.bias != nullptr ? outputLoop<F, true, false, false>(job) : outputLoop<F, false, false, false>(job);
}
SIMD(void, transformOutput2, (const OutputJob<float>& job), (job)) { outputOf<Minimal<2>>(job); }
SIMD(void, transformOutput4, (const OutputJob<float>& job), (job)) { outputOf<Minimal<4>>(job); }
SIMD(void, transformOutput2, (const OutputJob<bf16>& job), (job)) { outputOf<Minimal<2>>(job); }
SIMD(void, transformOutput4, (const OutputJob<bf16>& job), (job)) { outputOf<Minimal<4>>(job); }

template <class F, class S>
INLINE void gradientLoop(const GradientJob<S>& job) {
  constexpr int side = F::kSide, outputs = F::kOutputs;
  float* out[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) out[i] = job.out + i * job.stride;
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c)
    bothWays<outputs, side>([](const float (&y)[outputs], float (&t)[side]) INLINE_LAMBDA { F::gradient(y, t); },
                            [&](int i, int j) INLINE_LAMBDA { return valueOf(job.pixels[outputs * i + j][c]); },
                            [&](int i, int j, float value) INLINE_LAMBDA { out[side * i + j][c] = value; });
}
SIMD(void, transformGradient2, (const GradientJob<float>& job), (job)) { gradientLoop<Minimal<2>>(job); }
SIMD(void, transformGradient4, (const GradientJob<float>& job), (job)) { gradientLoop<Minimal<4>>(job); }
SIMD(void, transformGradient2, (const GradientJob<bf16>& job), (job)) { gradientLoop<Minimal<2>>(job); }
SIMD(void, transformGradient4, (const GradientJob<bf16>& job), (job)) { gradientLoop<Minimal<4>>(job); }

template <class F>
INLINE void weightsLoop(const WeightsJob& job) {
  constexpr int side = F::kSide;
  const int64_t apart = job.depth * kWinogradLanes;
  for (int64_t k = 0; k < job.depth; ++k) {
    const float* taps = job.taps + k * kWinogradLanes;
    float* out = job.out + k * job.width;
#pragma GCC ivdep
    for (int64_t c = 0; c < kWinogradLanes; ++c)
      bothWays<3, side>([](const float (&w)[3], float (&t)[side]) INLINE_LAMBDA { F::weight(w, t); },
                        [&](int i, int j) INLINE_LAMBDA { return taps[(3 * i + j) * apart + c]; },
                        [&](int i, int j, float value) INLINE_LAMBDA { out[(side * i + j) * job.stride + c] = value; });
  }
}
SIMD(void, transformWeights2, (const WeightsJob& job), (job)) { weightsLoop<Minimal<2>>(job); }
SIMD(void, transformWeights4, (const WeightsJob& job), (job)) { weightsLoop<Minimal<4>>(job); }

template <class F>
INLINE void backLoop(const BackJob& job) {
  constexpr int side = F::kSide;
  const float* u[F::kPoints];
  for (int64_t i = 0; i < F::kPoints; ++i) u[i] = job.u + i * job.stride;
#pragma GCC ivdep
  for (int64_t c = 0; c < job.count; ++c)
    bothWays<side, 3>([](const float (&in)[side], float (&w)[3]) INLINE_LAMBDA { F::back(in, w); },
                      [&](int i, int j) INLINE_LAMBDA { return u[side * i + j][c]; },
                      [&](int i, int j, float value) INLINE_LAMBDA { job.out[(3 * i + j) * job.count + c] = value; });
}
SIMD(void, transformBack2, (const BackJob& job), (job)) { backLoop<Minimal<2>>(job); }
SIMD(void, transformBack4, (const BackJob& job), (job)) { backLoop<Minimal<4>>(job); }

static_assert(kMaxPoints == Minimal<4>::kPoints);

}  // namespace

template <class S>
const Transforms<S>& transforms(int64_t outputs) {
  static const Transforms<S> two{{2, 4, 16}, transformInput2, transformOutput2, transformGradient2, transformWeights2, transformBack2},
      four{{4, 6, 36}, transformInput4, transformOutput4, transformGradient4, transformWeights4, transformBack4};
  return outputs == 2 ? two : four;
}
template const Transforms<float>& transforms<float>(int64_t);
template const Transforms<bf16>& transforms<bf16>(int64_t);

}  // namespace densecl::cpu

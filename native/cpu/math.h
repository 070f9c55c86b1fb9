// The functions that native/core/maps.def is written with. Those of float have neither branches nor calls, so that loops over them become
// vector code; their polynomials are minimax fits (Lawson's iteration on Chebyshev nodes) with relative errors below 2^-24 before rounding.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "isa.h"

namespace densecl::cpu {

// The bits of floats are unsigned, as sums and shifts of them wrap.
union FloatBits {
  float f;
  uint32_t u;
};
INLINE uint32_t bitsOf(float x) {
  FloatBits bits;
  bits.f = x;
  return bits.u;
}
INLINE float floatOf(uint32_t u) {
  FloatBits bits;
  bits.u = u;
  return bits.f;
}

// The bits of the bf16 nearest to x, ties to even.
INLINE uint16_t roundedBits(float x) {
  const uint32_t word = bitsOf(x), rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : (word >> 16) | 0x40u);
}

// e^x = 2^n e^r with x = n ln 2 + r, |r| <= ln 2 / 2. The power of two is applied in two halves: either fits a float where the result
// overflows or is subnormal.
INLINE float expOf(float x) {
  const float low = x < -104.0f ? -104.0f : x, bounded = low > 89.0f ? 89.0f : low;
  // Added to and subtracted from 1.5 2^23, a float is rounded to a whole number.
  const float shifted = bounded * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 0.00138145577f;
  p = p * r + 0.00836873577f;
  p = p * r + 0.0416683899f;
  p = p * r + 0.166665205f;
  p = p * r + 0.499999934f;
  const float e = (p * r) * r + r + 1.0f;
  const uint32_t whole = bitsOf(shifted) - 0x4b400000u, half = static_cast<uint32_t>(static_cast<int32_t>(whole) >> 1);
  return e * floatOf((half + 127u) << 23) * floatOf((whole - half + 127u) << 23);
}
INLINE double expOf(double x) { return std::exp(x); }

// log x = e ln 2 + log(1 + f) with x = 2^e (1 + f), 2/3 <= 1 + f < 4/3.
INLINE float logOf(float x) {
  const bool subnormal = x < 1.17549435e-38f;
  const uint32_t bits = bitsOf(subnormal ? x * 8388608.0f : x);
  const int32_t e = static_cast<int32_t>(bits - 0x3f2aaaabu) >> 23;
  const float f = floatOf(bits - (static_cast<uint32_t>(e) << 23)) - 1.0f, exponent = static_cast<float>(e) - (subnormal ? 23.0f : 0.0f);
  float p = -0.128456494f;
  p = p * f + 0.139944732f;
  p = p * f - 0.121937954f;
  p = p * f + 0.140039183f;
  p = p * f - 0.166798781f;
  p = p * f + 0.200105202f;
  p = p * f - 0.249998093f;
  p = p * f + 0.333332141f;
  const float square = f * f;
  const float value = exponent * 0.693359375f + (f + (square * (f * p - 0.5f) - exponent * 2.12194440e-4f));
  const float finite = x > 3.40282347e38f ? x : value;
  const float positive = x == 0.0f ? -std::numeric_limits<float>::infinity() : finite;
  return x >= 0.0f ? positive : std::numeric_limits<float>::quiet_NaN();
}
INLINE double logOf(double x) { return std::log(x); }

INLINE float sqrtOf(float x) { return std::sqrt(x); }
INLINE double sqrtOf(double x) { return std::sqrt(x); }

template <class T>
INLINE T sigmoidOf(T x) {
  return T(1) / (T(1) + expOf(-x));
}

// x + x^3 P(x^2) near 0, else 1 - 2 / (e^2|x| + 1) with the sign of x.
INLINE float tanhOf(float x) {
  const float magnitude = x < 0.0f ? -x : x, square = x * x;
  float p = -0.00570499041f;
  p = p * square + 0.0206390907f;
  p = p * square - 0.0537397163f;
  p = p * square + 0.133314422f;
  p = p * square - 0.333332819f;
  const float near = x + x * (square * p), far = 1.0f - 2.0f / (expOf(2.0f * magnitude) + 1.0f);
  return magnitude < 0.625f ? near : x < 0.0f ? -far : far;
}
INLINE double tanhOf(double x) { return std::tanh(x); }

// e^(-x^2 / 2), which is 0 beyond 15.
INLINE float bell(float x) {
  const float magnitude = x < 0.0f ? -x : x, bounded = magnitude > 15.0f ? 15.0f : magnitude;
  return expOf(-0.5f * bounded * bounded);
}

// The density of the normal distribution.
INLINE float normalPdf(float x) { return 0.398942280f * bell(x); }
INLINE double normalPdf(double x) { return 0.3989422804014327 * std::exp(-0.5 * x * x); }

// The distribution function of the normal distribution: erfc(u) / 2 = e^-u^2 t P(t), t = 1 / (1 + 0.3275911 u), for u = |x| / sqrt 2.
INLINE float normalCdf(float x) {
  const float magnitude = x < 0.0f ? -x : x, bounded = magnitude > 15.0f ? 15.0f : magnitude;
  const float t = 1.0f / (1.0f + 0.3275911f * 0.707106781f * bounded);
  float p = 0.0283378584f;
  p = p * t - 0.158562085f;
  p = p * t + 0.313671367f;
  p = p * t - 0.28001899f;
  p = p * t + 0.250680651f;
  p = p * t - 0.0251887201f;
  p = p * t + 0.102975213f;
  p = p * t + 0.0828179916f;
  p = p * t + 0.0928971952f;
  p = p * t + 0.0923895174f;
  const float tail = bell(x) * t * p;
  const float value = x < 0.0f ? tail : 1.0f - tail;
  return x == x ? value : x;
}
INLINE double normalCdf(double x) { return 0.5 * std::erfc(x * -0.7071067811865476); }

union DoubleBits {
  double f;
  uint64_t u;
};
INLINE uint64_t bitsOf(double x) {
  DoubleBits bits;
  bits.f = x;
  return bits.u;
}
INLINE double doubleOf(uint64_t u) {
  DoubleBits bits;
  bits.u = u;
  return bits.f;
}

// |a|^b = e^(b log |a|) in double, as b log |a| is up to 128 ln 2 and its error is the result's: log |a| = e ln 2 + 2 artanh(s) with
// |a| = 2^e m, sqrt(1/2) <= m < sqrt(2), s = (m - 1) / (m + 1), both series as far as a float can tell. Integers become doubles by the
// bits of 2^52 + i, for which every instruction set has vectors.
INLINE float powOf(float a, float b) {
  const double magnitude = a < 0.0f ? -a : a, exponent = b;
  const uint64_t biased = (bitsOf(magnitude) - 0x3fe6a09e667f3bcd + (uint64_t{1023} << 52)) >> 52;
  const double e = doubleOf(biased | 0x4330000000000000) - (4503599627370496.0 + 1023.0);
  const double m = doubleOf(bitsOf(magnitude) - ((biased - 1023) << 52));
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double series = 1.0 / 13;
  series = series * square + 1.0 / 11;
  series = series * square + 1.0 / 9;
  series = series * square + 1.0 / 7;
  series = series * square + 1.0 / 5;
  series = series * square + 1.0 / 3;
  const double log = e * 0.6931471805599453 + 2.0 * (s + s * (square * series));
  // Of infinity and 0 a number whose product with 0 is 0.
  const double large = magnitude == magnitude ? 1e300 : magnitude, finite = magnitude <= 3.4028234663852886e38 ? log : large;
  const double logarithm = magnitude == 0.0 ? -1e300 : finite;

  const double product = exponent * logarithm, low = product < -200.0 ? -200.0 : product, bounded = low > 200.0 ? 200.0 : low;
  const double rounded = bounded * 1.4426950408889634 + 6755399441055744.0, n = rounded - 6755399441055744.0;
  const double r = bounded - n * 0.6931471805599453;
  double p = 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  const double power = (p * (r * r) + r + 1.0) * doubleOf((bitsOf(rounded) << 52) + (uint64_t{1023} << 52));

  // Of a negative a: the sign of an odd b, and NaN for a b that is no whole number. What a sum with 1.5 2^52 leaves of b is whole.
  const double half = exponent * 0.5, sign = half + 6755399441055744.0 - 6755399441055744.0 == half ? 1.0 : -1.0;
  // Of -0 and -infinity such a power is that of 0 and infinity.
  const double broken = magnitude == 0.0 || magnitude > 3.4028234663852886e38 ? 1.0 : std::numeric_limits<double>::quiet_NaN();
  const double factor = exponent + 6755399441055744.0 - 6755399441055744.0 == exponent ? sign : broken;
  const double value = power * (bitsOf(a) >> 31 != 0 ? factor : 1.0);
  // 1 is what is to the power 0, also NaN, 1 to any power, also NaN, and -1 to the powers of infinity, as IEEE 754 has it.
  const bool one = b == 0.0f || a == 1.0f || (a == -1.0f && exponent * 0.0 != 0.0 && exponent == exponent);
  return static_cast<float>(one ? 1.0 : value);
}
INLINE double powOf(double a, double b) { return std::pow(a, b); }

}  // namespace densecl::cpu

// The loops of libjpeg-turbo that take its time, in place of its assembler: the accurate inverse DCT, the upsampling of chroma by two and
// YCbCr to RGB. Vectors of the compiler, so that one source serves all systems, and no assembler is needed. The pixels are those of the
// library's own C (jidctint.c, jdsample.c, jdcolext.c); coefficients that no encoder writes saturate here, where they wrap around there.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>

extern "C" {
#include <jpeglib.h>
}

#include "../cpu/isa.h"

namespace {

typedef int32_t Signed __attribute__((vector_size(32)));
typedef uint32_t Lanes __attribute__((vector_size(32)));
typedef int16_t Coefficients __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, std::decay_t<decltype(a)>{__VA_ARGS__})
#endif

// Constants of jidctint.c: 13 bits after the point.
constexpr int kConstantBits = 13, kFirstPassBits = 2;
constexpr uint32_t fixed(double value) {
  return static_cast<uint32_t>(static_cast<int32_t>(value * (1 << kConstantBits) + (value < 0 ? -0.5 : 0.5)));
}

template <int bits>
INLINE Lanes descale(Lanes value) {
  return (Lanes)((Signed)(value + (1u << (bits - 1))) >> bits);
}

// One dimension of the inverse DCT of Loeffler, Ligtenberg and Moschytz, over the array; each lane is a transform of its own. Unsigned,
// since what overflows wraps around.
template <int bits>
INLINE void inverseDct(Lanes (&x)[8]) {
  const Lanes evenSum = (x[2] + x[6]) * fixed(0.541196100);
  const Lanes even2 = evenSum - x[6] * fixed(1.847759065), even3 = evenSum + x[2] * fixed(0.765366865);
  const Lanes even0 = (x[0] + x[4]) << kConstantBits, even1 = (x[0] - x[4]) << kConstantBits;
  const Lanes e0 = even0 + even3, e3 = even0 - even3, e1 = even1 + even2, e2 = even1 - even2;
  const Lanes z5 = (x[7] + x[3] + x[5] + x[1]) * fixed(1.175875602);
  const Lanes z1 = (x[7] + x[1]) * fixed(0.899976223), z2 = (x[5] + x[3]) * fixed(2.562915447);
  const Lanes z3 = z5 - (x[7] + x[3]) * fixed(1.961570560), z4 = z5 - (x[5] + x[1]) * fixed(0.390180644);
  const Lanes odd0 = x[7] * fixed(0.298631336) - z1 + z3, odd1 = x[5] * fixed(2.053119869) - z2 + z4;
  const Lanes odd2 = x[3] * fixed(3.072711026) - z2 + z3, odd3 = x[1] * fixed(1.501321110) - z1 + z4;
  x[0] = descale<bits>(e0 + odd3);
  x[7] = descale<bits>(e0 - odd3);
  x[1] = descale<bits>(e1 + odd2);
  x[6] = descale<bits>(e1 - odd2);
  x[2] = descale<bits>(e2 + odd1);
  x[5] = descale<bits>(e2 - odd1);
  x[3] = descale<bits>(e3 + odd0);
  x[4] = descale<bits>(e3 - odd0);
}

INLINE void transpose(Lanes (&x)[8]) {
  Lanes pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = SHUFFLE(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = SHUFFLE(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * j + 1] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = SHUFFLE(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    x[i + 4] = SHUFFLE(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

INLINE uint8_t clamped(int32_t value) { return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value); }

SIMD(void, inverseBlock, (const int* quantisation, const JCOEF* block, JSAMPARRAY rows, size_t column),
     (quantisation, block, rows, column)) {
  Coefficients coefficients[8];
  std::memcpy(coefficients, block, sizeof coefficients);
  Coefficients others = coefficients[0];
  others[0] = 0;
  for (int i = 1; i < 8; ++i) others |= coefficients[i];
  int64_t halves[2];
  std::memcpy(halves, &others, sizeof halves);
  if ((halves[0] | halves[1]) == 0) {
    // Only the mean is there; the two passes scale it by 4 and by 1/32.
    const uint32_t mean = (static_cast<uint32_t>(block[0]) * static_cast<uint32_t>(quantisation[0])) << kFirstPassBits;
    const uint8_t value = clamped((static_cast<int32_t>(mean + (1u << (kFirstPassBits + 2))) >> (kFirstPassBits + 3)) + 128);
    for (int i = 0; i < 8; ++i) std::memset(rows[i] + column, value, 8);
    return;
  }
  Lanes x[8];
  for (int i = 0; i < 8; ++i) {
    Lanes factors;
    std::memcpy(&factors, quantisation + 8 * i, sizeof factors);
    x[i] = (Lanes) __builtin_convertvector(coefficients[i], Signed) * factors;
  }
  inverseDct<kConstantBits - kFirstPassBits>(x);
  transpose(x);
  inverseDct<kConstantBits + kFirstPassBits + 3>(x);
  transpose(x);
  for (int i = 0; i < 8; ++i) {
    int32_t values[8];
    std::memcpy(values, &x[i], sizeof values);
    uint8_t* out = rows[i] + column;
    for (int j = 0; j < 8; ++j) out[j] = clamped(values[j] + 128);
  }
}

// A triangle filter that makes two samples of each: 3/4 of the nearer and 1/4 of the further one, rounding up and down in turns; beyond
// the ends the last ones go on. `sums(i)` is the sample i times 2^(shift - 2).
template <int shift, class Sums>
INLINE void widenLoop(size_t count, uint8_t* __restrict out, Sums sums) {
  constexpr size_t chunk = 512;
  constexpr uint16_t early = shift == 4 ? 8 : 1, late = shift == 4 ? 7 : 2;
  uint16_t near[chunk + 2];
  for (size_t from = 0; from < count; from += chunk) {
    const size_t length = count - from < chunk ? count - from : chunk;
    near[0] = sums(from > 0 ? from - 1 : 0);
    for (size_t i = 0; i < length; ++i) near[i + 1] = sums(from + i);
    near[length + 1] = sums(from + length < count ? from + length : count - 1);
    for (size_t i = 0; i < length; ++i) {
      const auto here = static_cast<uint16_t>(3 * near[i + 1]);
      out[2 * (from + i)] = static_cast<uint8_t>(static_cast<uint16_t>(here + near[i] + early) >> shift);
      out[2 * (from + i) + 1] = static_cast<uint8_t>(static_cast<uint16_t>(here + near[i + 2] + late) >> shift);
    }
  }
}

// Of two rows, the first of which is the nearer.
SIMD(void, widenTwo, (const uint8_t* __restrict near, const uint8_t* __restrict far, size_t count, uint8_t* __restrict out),
     (near, far, count, out)) {
  widenLoop<4>(count, out, [=](size_t i) INLINE_LAMBDA { return static_cast<uint16_t>(3 * near[i] + far[i]); });
}
SIMD(void, widenOne, (const uint8_t* __restrict in, size_t count, uint8_t* __restrict out), (in, count, out)) {
  widenLoop<2>(count, out, [=](size_t i) INLINE_LAMBDA { return uint16_t{in[i]}; });
}

// 16 pixels of three planes, which are `stride` bytes from each other.
INLINE void interleave(const uint8_t* planes, size_t stride, uint8_t* out) {
  Bytes r, g, b;
  std::memcpy(&r, planes, 16);
  std::memcpy(&g, planes + stride, 16);
  std::memcpy(&b, planes + 2 * stride, 16);
  const Bytes first = SHUFFLE(r, g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
  const Bytes second = SHUFFLE(r, g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
  const Bytes third = SHUFFLE(r, g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
  // Stored one by one: an array would be read back in wider pieces than it was written.
  const Bytes pixels0 = SHUFFLE(first, b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15);
  const Bytes pixels5 = SHUFFLE(second, b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15);
  const Bytes pixels10 = SHUFFLE(third, b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31);
  std::memcpy(out, &pixels0, 16);
  std::memcpy(out + 16, &pixels5, 16);
  std::memcpy(out + 32, &pixels10, 16);
}

// The fractions of YCbCr to RGB, 16 bits after the point, without their whole parts: 16-bit products are twice as many a vector.
constexpr int kRedCr = 26345, kBlueCb = -14942, kGreenCb = -22554, kGreenCr = 18734;

// value * factor / 65536, rounded, within 16 bits.
INLINE int16_t scaled(int16_t value, int factor) {
  const auto high = static_cast<int16_t>((static_cast<int16_t>(2 * value) * factor) >> 16);
  return static_cast<int16_t>(static_cast<int16_t>(high + 1) >> 1);
}
INLINE uint8_t clamped16(int16_t value) { return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value); }

template <int count>
INLINE void toPlanes(const uint8_t* y, const uint8_t* cb, const uint8_t* cr, uint8_t* planes) {
  for (int i = 0; i < count; ++i) {
    const auto v = static_cast<int16_t>(cr[i] - 128);
    planes[i] = clamped16(static_cast<int16_t>(y[i] + v + scaled(v, kRedCr)));
  }
  for (int i = 0; i < count; ++i) {
    const auto u = static_cast<int16_t>(cb[i] - 128), v = static_cast<int16_t>(cr[i] - 128);
    const auto fraction = static_cast<int16_t>((u * kGreenCb + v * kGreenCr + (1 << 15)) >> 16);
    planes[count + i] = clamped16(static_cast<int16_t>(y[i] - v + fraction));
  }
  for (int i = 0; i < count; ++i) {
    const auto u = static_cast<int16_t>(cb[i] - 128);
    planes[2 * count + i] = clamped16(static_cast<int16_t>(y[i] + 2 * u + scaled(u, kBlueCb)));
  }
}

SIMD(void, rowToRgb, (const uint8_t* y, const uint8_t* cb, const uint8_t* cr, size_t width, uint8_t* out), (y, cb, cr, width, out)) {
  constexpr size_t block = 32;
  uint8_t planes[3 * block];
  if (width < block) {
    for (size_t i = 0; i < width; ++i) {
      toPlanes<1>(y + i, cb + i, cr + i, planes);
      std::memcpy(out + 3 * i, planes, 3);
    }
    return;
  }
  for (size_t at = 0; at < width; at += block) {
    // The last block overlaps the one before.
    const size_t from = at + block <= width ? at : width - block;
    toPlanes<block>(y + from, cb + from, cr + from, planes);
    for (size_t i = 0; i < block; i += 16) interleave(planes + i, block, out + 3 * (from + i));
  }
}

}  // namespace

// What jsimd.h of the library asks for.
extern "C" {

int jsimd_can_idct_islow() { return 1; }
int jsimd_can_h2v2_fancy_upsample() { return 1; }
int jsimd_can_h2v1_fancy_upsample() { return 1; }
int jsimd_can_h1v2_fancy_upsample() { return 0; }
int jsimd_can_ycc_rgb() { return 1; }
int jsimd_can_ycc_rgb565() { return 0; }
int jsimd_can_idct_4x4() { return 0; }
int jsimd_can_idct_2x2() { return 0; }
int jsimd_can_h2v2_upsample() { return 0; }
int jsimd_can_h2v1_upsample() { return 0; }

void jsimd_idct_islow(j_decompress_ptr, jpeg_component_info* component, JCOEFPTR block, JSAMPARRAY rows, JDIMENSION column) {
  inverseBlock(static_cast<const int*>(component->dct_table), block, rows, column);
}

void jsimd_h2v2_fancy_upsample(j_decompress_ptr info, jpeg_component_info* component, JSAMPARRAY in, JSAMPARRAY* out) {
  for (int row = 0; row < info->max_v_samp_factor; ++row) {
    const int near = row / 2;
    widenTwo(in[near], in[row % 2 == 0 ? near - 1 : near + 1], component->downsampled_width, (*out)[row]);
  }
}

void jsimd_h2v1_fancy_upsample(j_decompress_ptr info, jpeg_component_info* component, JSAMPARRAY in, JSAMPARRAY* out) {
  for (int row = 0; row < info->max_v_samp_factor; ++row) widenOne(in[row], component->downsampled_width, (*out)[row]);
}

void jsimd_ycc_rgb_convert(j_decompress_ptr info, JSAMPIMAGE in, JDIMENSION first, JSAMPARRAY out, int rows) {
  for (int row = 0; row < rows; ++row) rowToRgb(in[0][first + row], in[1][first + row], in[2][first + row], info->output_width, out[row]);
}

// Asked about with 0 above, or of no use to a decoder of RGB.
#define NEVER(name) \
  void name() {}
NEVER(jsimd_h1v2_fancy_upsample)
NEVER(jsimd_ycc_rgb565_convert)
NEVER(jsimd_idct_4x4)
NEVER(jsimd_idct_2x2)
NEVER(jsimd_h2v2_upsample)
NEVER(jsimd_h2v1_upsample)

}  // extern "C"

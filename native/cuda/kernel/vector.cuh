// Accesses of 16 bytes: the widest that a thread has, and what memory-bound kernels need to reach the bandwidth.
#pragma once
#include <cstring>
#include <type_traits>

#include "platform.cuh"

namespace densecl::cuda {

constexpr int kVectorBytes = 16;

template <class T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kLength = kVectorBytes / static_cast<int>(sizeof(T));
  T v[kLength];
};

// Or a single element, where the channels are no multiple of a vector: the same code with another width.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Elements {
  T v[kWidth];
};

template <class T, int kWidth>
DEVICE Elements<T, kWidth> load(const T* at) {
#if !defined(__CUDACC__)
  simt::checkAligned(at, sizeof(T) * kWidth);
#endif
  return *reinterpret_cast<const Elements<T, kWidth>*>(at);
}
template <class T, int kWidth>
DEVICE void store(T* at, const Elements<T, kWidth>& value) {
#if !defined(__CUDACC__)
  simt::checkAligned(at, sizeof(T) * kWidth);
#endif
  *reinterpret_cast<Elements<T, kWidth>*>(at) = value;
}

// Four floats at a time.
template <int kCount>
DEVICE void loadFloats(float (&to)[kCount], const float* from) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const auto part = load<float, 4>(from + i);
    for (int e = 0; e < 4; ++e) to[i + e] = part.v[e];
  }
}

// 16 bytes as words, for values that are moved, or become floats and are rounded back as a whole: elements of 16 bits would be taken
// apart and put together one by one.
template <class T>
struct alignas(16) Words {
  uint32_t v[4];
};

template <class T>
DEVICE Words<T> loadWords(const T* at) {
#if defined(__CUDACC__)
  const uint4 words = *reinterpret_cast<const uint4*>(at);
  return {words.x, words.y, words.z, words.w};
#else
  simt::checkAligned(at, 16);
  return *reinterpret_cast<const Words<T>*>(at);
#endif
}
// To global memory. Said as an instruction: an assignment of values that come out of branches is taken apart.
template <class T>
DEVICE void storeWords(T* at, const Words<T>& words) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(words.v[0]), "r"(words.v[1]),
               "r"(words.v[2]), "r"(words.v[3])
               : "memory");
#elif !defined(__CUDACC__)
  simt::checkAligned(at, 16);
  *reinterpret_cast<Words<T>*>(at) = words;
#endif
}

DEVICE float floatOf(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
DEVICE uint32_t bitsOf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
// Two values as neighbours in a word, each rounded to bf16.
DEVICE uint32_t packPair(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return static_cast<uint32_t>(bf16(low).bits) | static_cast<uint32_t>(bf16(high).bits) << 16;
#endif
}

// The low, or high, halves of two words as neighbours in one.
DEVICE uint32_t lowHalves(uint32_t low, uint32_t high) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(low, high, 0x5410);
#else
  return (low & 0xffffu) | high << 16;
#endif
}
DEVICE uint32_t highHalves(uint32_t low, uint32_t high) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(low, high, 0x7632);
#else
  return low >> 16 | (high & 0xffff0000u);
#endif
}

// The same after a ReLU; NaN stays NaN.
DEVICE uint32_t packRectified(float low, float high) {
#if defined(__CUDA_ARCH__)
  uint32_t word;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  return packPair(low < 0 ? 0.0f : low, high < 0 ? 0.0f : high);
#endif
}

template <class T, int kWidth>
DEVICE void unpack(float (&to)[kWidth], const Elements<T, kWidth>& from) {
#pragma unroll
  for (int i = 0; i < kWidth; ++i) to[i] = static_cast<float>(from.v[i]);
}
DEVICE void unpack(float (&to)[8], const Words<bf16>& from) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = floatOf(from.v[i] << 16);
    to[2 * i + 1] = floatOf(from.v[i] & 0xffff0000u);
  }
}
DEVICE void unpack(float (&to)[4], const Words<float>& from) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = floatOf(from.v[i]);
}
// Four values as neighbours in a word, each rounded to E4M3.
DEVICE uint32_t packQuad(float a, float b, float c, float d) {
#if defined(DENSECL_HOPPER)
  uint32_t word;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}"
      : "=r"(word)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return word;
#else
  const uint32_t low = e4m3(a).bits | static_cast<uint32_t>(e4m3(b).bits) << 8;
  return low | static_cast<uint32_t>(e4m3(c).bits) << 16 | static_cast<uint32_t>(e4m3(d).bits) << 24;
#endif
}
DEVICE void unpackQuad(float* to, uint32_t word) {
#if defined(DENSECL_HOPPER)
  // By halves, which hold every value of E4M3.
  asm("{\n"
      ".reg .b16 low, high, a, b, c, d;\n"
      ".reg .b32 first, second;\n"
      "mov.b32 {low, high}, %4;\n"
      "cvt.rn.f16x2.e4m3x2 first, low;\n"
      "cvt.rn.f16x2.e4m3x2 second, high;\n"
      "mov.b32 {a, b}, first;\n"
      "mov.b32 {c, d}, second;\n"
      "cvt.f32.f16 %0, a;\n"
      "cvt.f32.f16 %1, b;\n"
      "cvt.f32.f16 %2, c;\n"
      "cvt.f32.f16 %3, d;\n"
      "}"
      : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
      : "r"(word));
#else
  for (int i = 0; i < 4; ++i) {
    e4m3 value;
    value.bits = static_cast<uint8_t>(word >> 8 * i);
    to[i] = static_cast<float>(value);
  }
#endif
}
DEVICE void unpack(float (&to)[8], const Elements<e4m3, 8>& from) {
  uint32_t words[2];
  memcpy(words, from.v, 8);
  unpackQuad(to, words[0]);
  unpackQuad(to + 4, words[1]);
}
template <class T>
DEVICE Words<T> pack(const float (&from)[Vector<T>::kLength]) {
  Words<T> to;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2)
      to.v[i] = packPair(from[2 * i], from[2 * i + 1]);
    else
      to.v[i] = bitsOf(from[i]);
  }
  return to;
}

// A load or store of kWidth values as it suits them: words where they fill 16 bytes, else element by element.
template <class T, int kWidth>
using Chunk = std::conditional_t<sizeof(T) * kWidth == 16, Words<T>, Elements<T, kWidth>>;

template <class T, int kWidth>
DEVICE Chunk<T, kWidth> loadChunk(const T* at) {
  if constexpr (sizeof(T) * kWidth == 16)
    return loadWords(at);
  else
    return load<T, kWidth>(at);
}
// To global memory, each value rounded.
DEVICE void storeRounded(e4m3* at, const float (&v)[8]) {
  const uint32_t words[2] = {packQuad(v[0], v[1], v[2], v[3]), packQuad(v[4], v[5], v[6], v[7])};
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(at)), "r"(words[0]), "r"(words[1]) : "memory");
#else
  Elements<e4m3, 8> values;
  memcpy(values.v, words, 8);
  store<e4m3, 8>(at, values);
#endif
}
template <class T, int kWidth>
DEVICE void storeRounded(T* at, const float (&values)[kWidth]) {
  if constexpr (sizeof(T) * kWidth == 16) {
    storeWords(at, pack<T>(values));
  } else {
    for (int i = 0; i < kWidth; ++i) at[i] = T(values[i]);
  }
}

}  // namespace densecl::cuda

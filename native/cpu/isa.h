// Instruction sets. Hot loops are ordinary code in an always-inline template; SIMD compiles the function that calls it
// once for each set and the dynamic linker picks at load time. Loops that keep accumulators in registers by hand
// (gemm_tile.h) choose through isa(). DENSECL_ISA=portable|avx2|avx512|avx512bf16|amx forces the
// latter for tests; isa() throws ARGUMENT for another word and for a set that is not here.
#pragma once
#include <cstdlib>  // defines __GLIBC__

// target_clones needs the indirect functions of glibc. A named level is chosen by features; a processor's name ("haswell")
// would be chosen on that very processor only. GCC before 12 does not know levels: AVX2 alone, without FMA.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define DENSECL_X86 1
#if __GNUC__ >= 12
#define SIMD __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define SIMD __attribute__((target_clones("default", "avx2")))
#endif
#else
#define SIMD
#endif
// SIMD_LOOP(name, Job): the function name(const Job<T>&) for float and double from the template name##Loop<T>.
#define SIMD_LOOP(name, Job)                                 \
  SIMD void name(const Job<float>& job) { name##Loop(job); } \
  SIMD void name(const Job<double>& job) { name##Loop(job); }
// The same, and one for bf16.
#define SIMD_LOOP_STORED(name, Job) \
  SIMD_LOOP(name, Job)              \
  SIMD void name(const Job<bf16>& job) { name##Loop(job); }
#define INLINE inline __attribute__((always_inline))

namespace densecl::cpu {

// Each has what those before it have; the last two multiply pairs of bf16, in vectors and in tile registers.
enum class Isa { portable, avx2, avx512, avx512bf16, amx };
Isa isa();
const char* instructionSet();

}  // namespace densecl::cpu

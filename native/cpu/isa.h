// Instruction sets. Hot loops are ordinary code in an always-inline template; SIMD compiles the function that calls it once for each set,
// one of which is chosen when the addon is loaded. Loops that keep accumulators in registers by hand (gemm_tile.h) choose through isa().
// DENSECL_ISA=portable|avx2|avx512|avx512bf16|amx forces the latter for tests; isa() throws ARGUMENT for another word and for a set that is
// not here.
#pragma once
#include <cstdlib>  // defines __GLIBC__

#define INLINE inline __attribute__((always_inline))
// Of a lambda, which is then inlined into each form of a SIMD function, whose instructions it has.
#define INLINE_LAMBDA __attribute__((always_inline))

// SIMD(result, name, parameters, arguments) { body }: the function `result name parameters`, which its other forms call with `arguments`.
// The dynamic linker of glibc chooses a clone. A named level is chosen by features; a processor's name ("haswell") would be chosen on that
// very processor only. GCC before 12 does not know levels: AVX2 alone, without FMA. A sanitizer gets one form: all touch the same places
// of memory.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define DENSECL_X86 1
#if defined(__SANITIZE_ADDRESS__)
#define SIMD(result, name, parameters, arguments) result name parameters
#elif __GNUC__ >= 12
#define SIMD(result, name, parameters, arguments) \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4"))) result name parameters
#else
#define SIMD(result, name, parameters, arguments) __attribute__((target_clones("default", "avx2"))) result name parameters
#endif
// Other linkers know no such functions: the body is inlined into one for each level, and one more calls that which loopLevel names.
#elif defined(__x86_64__) && __GNUC__ >= 12 && !defined(__clang__)
#define DENSECL_X86 1
#define DENSECL_LOOP_LEVEL 1
#define SIMD(result, name, parameters, arguments)                                                              \
  INLINE result name##Body parameters;                                                                         \
  static __attribute__((target("arch=x86-64-v3"))) result name##V3 parameters { return name##Body arguments; } \
  static __attribute__((target("arch=x86-64-v4"))) result name##V4 parameters { return name##Body arguments; } \
  result name parameters {                                                                                     \
    return ::densecl::cpu::loopLevel == 4   ? name##V4 arguments                                               \
           : ::densecl::cpu::loopLevel == 3 ? name##V3 arguments                                               \
                                            : name##Body arguments;                                            \
  }                                                                                                            \
  INLINE result name##Body parameters
#else
#define SIMD(result, name, parameters, arguments) result name parameters
#endif
// SIMD_LOOP(name, Job): the function name(const Job<T>&) for float and double from the template name##Loop<T>.
#define SIMD_LOOP(name, Job)                                            \
  SIMD(void, name, (const Job<float>& job), (job)) { name##Loop(job); } \
  SIMD(void, name, (const Job<double>& job), (job)) { name##Loop(job); }
// The same, and one for bf16.
#define SIMD_LOOP_STORED(name, Job) \
  SIMD_LOOP(name, Job)              \
  SIMD(void, name, (const Job<bf16>& job), (job)) { name##Loop(job); }

namespace densecl::cpu {

// Each has what those before it have; the last two multiply pairs of bf16, in vectors and in tile registers.
enum class Isa { portable, avx2, avx512, avx512bf16, amx };
Isa isa();
const char* instructionSet();

#if defined(DENSECL_LOOP_LEVEL)
// The level of x86-64 whose SIMD functions are called: 4, 3, or 1 for the portable ones. At most that of DENSECL_ISA.
extern const int loopLevel;
#endif

}  // namespace densecl::cpu

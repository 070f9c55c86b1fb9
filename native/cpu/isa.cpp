#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace densecl::cpu {
namespace {

Isa detect() {
#if defined(DENSECL_X86)
  Isa best = Isa::portable;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::avx2;
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    best = Isa::avx512;
  }
  const char* wanted = std::getenv("DENSECL_ISA");
  if (wanted != nullptr && std::strcmp(wanted, "portable") == 0) return Isa::portable;
  if (wanted != nullptr && std::strcmp(wanted, "avx2") == 0 && best == Isa::avx512) return Isa::avx2;
  return best;
#else
  return Isa::portable;
#endif
}

}  // namespace

Isa isa() {
  static const Isa chosen = detect();
  return chosen;
}

const char* instructionSet() {
  switch (isa()) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
#if defined(__aarch64__)
    default: return "neon";  // what the compiler makes of the portable loops: every such processor has it
#else
    default: return "portable";
#endif
  }
}

}  // namespace densecl::cpu

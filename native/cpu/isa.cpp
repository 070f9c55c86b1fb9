#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace densecl::cpu {
namespace {

const char* nameOf(Isa level) {
  switch (level) {
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

Isa detect() {
#if defined(DENSECL_X86)
  Isa best = Isa::portable;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::avx2;
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    best = Isa::avx512;
  }
#if __GNUC__ >= 11  // older ones do not know the name
  if (best == Isa::avx512 && __builtin_cpu_supports("avx512bf16")) best = Isa::avx512bf16;
#endif
  const char* wanted = std::getenv("DENSECL_ISA");
  for (Isa level = Isa::portable; wanted != nullptr && level < best; level = static_cast<Isa>(static_cast<int>(level) + 1))
    if (std::strcmp(wanted, nameOf(level)) == 0) return level;
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
#if defined(__aarch64__)
  if (isa() == Isa::portable) return "neon";  // what the compiler makes of the portable loops: every such processor has it
#endif
  return nameOf(isa());
}

}  // namespace densecl::cpu

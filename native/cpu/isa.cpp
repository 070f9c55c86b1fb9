#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "../core/error.h"
#include "../core/system.h"

namespace densecl::cpu {
namespace {

const char* nameOf(Isa level) {
  switch (level) {
    case Isa::amx: return "amx";
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

// The best set that the processor and the compiler of this file have.
Isa detect() {
  Isa best = Isa::portable;
#if defined(DENSECL_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::avx2;
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    best = Isa::avx512;
  }
#if __GNUC__ >= 11  // older ones do not know the names
  if (best == Isa::avx512 && __builtin_cpu_supports("avx512bf16")) best = Isa::avx512bf16;
  const bool tiles = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
  if (best == Isa::avx512bf16 && tiles && mayUseTiles()) best = Isa::amx;
#endif
#endif
  return best;
}

// The set that DENSECL_ISA names, or the best.
Isa choose() {
  const Isa best = detect();
  const char* wanted = std::getenv("DENSECL_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  std::string names;
  for (const Isa level : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx}) {
    if (std::strcmp(wanted, nameOf(level)) == 0) {
      REQUIRE(
          level <= best, "ARGUMENT",
          std::string("DENSECL_ISA is ") + wanted + ": expected at most " + nameOf(best) + ", the best set of this processor and build");
      return level;
    }
    names += std::string(names.empty() ? "" : level == Isa::amx ? " or " : ", ") + nameOf(level);
  }
  throw Error("ARGUMENT", std::string("DENSECL_ISA is ") + wanted + ": expected " + names);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

#if defined(DENSECL_LOOP_LEVEL)
const int loopLevel = [] {
  Isa most;
  try {
    most = choose();
  } catch (const Error&) {
    most = Isa::portable;  // nothing is computed: isa() tells why
  }
  if (most >= Isa::avx512 && __builtin_cpu_supports("x86-64-v4")) return 4;
  return most >= Isa::avx2 && __builtin_cpu_supports("x86-64-v3") ? 3 : 1;
}();
#endif

const char* instructionSet() {
#if defined(__aarch64__)
  if (isa() == Isa::portable) return "neon";  // what the compiler makes of the portable loops: every such processor has it
#endif
  return nameOf(isa());
}

}  // namespace densecl::cpu

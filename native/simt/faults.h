// Instructions whose host bodies are broken on purpose, for tests of what notices: DENSECL_SIMT_FAULT names some, by commas. One that is
// named gives a wrong result in one lane or element; with ":hang" after its name it never ends.
#pragma once

namespace densecl::simt {

enum class Instruction {
  bulkCopy,
  bulkStore,
  im2col,
  mbarrier,
  wgmma,
  wgmmaRegisters,
  wgmmaE4m3,
  mma,
  ldmatrix,
  ldmatrixTrans,
  cpAsync,
  shuffle
};

// Whether its result shall be wrong. Does not return from one that hangs. Throws ARGUMENT where the variable has another word.
bool faulty(Instruction instruction);

}  // namespace densecl::simt

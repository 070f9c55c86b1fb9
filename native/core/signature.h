// What an op is called with, as native/core/ops.def declares it: tensors and numbers by name. The declaration makes the names that
// C++ reads a call by (args.h), the types that TypeScript passes (scripts/nativeOps.mjs), and the checks of every call.
#pragma once
#include <string>
#include <vector>

#include "tensor.h"

namespace densecl {

enum class Presence { required, optional, list, optionalList };

struct TensorParameter {
  const char* name;
  // The dtype and shape, such as "T[N,H,W,C]". A dtype is f32, i32, u8, another lower-case name, T (any floating dtype), A (what T is
  // accumulated in: f64 for f64, else f32), `_` or another capital letter (any dtype); a capital stands for one dtype in the whole call. A
  // dimension is a number, a name that stands for one size in the whole call, `_` for any size, or, in front of all others, a name with
  // three dots for any number of dimensions, the same in the whole call. A plus after it: not of size 0.
  const char* type;
  Presence presence;
  bool written;  // an output; a list may be either
  bool mayBeWritten() const { return written || presence == Presence::list || presence == Presence::optionalList; }
};

enum class NumberKind { real, integer, flag, integers };

struct NumberParameter {
  const char* name;
  NumberKind kind;
  double least, most;  // of an integer
};

struct Call;

struct Signature {
  const char* name;
  std::vector<TensorParameter> tensors = {};
  std::vector<NumberParameter> numbers = {};

  // Throws ARGUMENT, DTYPE or SHAPE for a call that does not fit, with the names of op and parameter.
  void check(const Call& call) const;
};

// One for each row of ops.def, in their order.
const std::vector<Signature>& signatures();

}  // namespace densecl

// The ops by their rows of ops.def: what JavaScript is told of them, and the calls that it makes.
#pragma once
#include <napi.h>

#include "handles.h"
#include "steps.h"

namespace densecl {

// run(index, handles (NaN for an absent one): Float64Array, numbers: Float64Array), parameters in the order of ops.def, in front of those
// of a list their count.
Napi::Value runOp(const Napi::CallbackInfo& info, const Handles& handles, Steps& steps);

// The formulas of maps.def in their order, each after the op that is called with its place.
Napi::Value listFormulas(Napi::Env env);

// Every op as scripts/nativeOps.mjs writes it: name(tensors)(numbers).
Napi::Value listSignatures(Napi::Env env);

}  // namespace densecl

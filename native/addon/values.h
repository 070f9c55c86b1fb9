// What JavaScript passes, as native code takes it. Nothing is rounded or clamped, no JavaScript (a valueOf) is called, and what is not as
// expected throws ARGUMENT, SHAPE or OUT_OF_MEMORY.
#pragma once
#include <napi.h>

#include <string>
#include <utility>
#include <vector>

#include "../core/call.h"

namespace densecl {

constexpr double kLargest = 9007199254740991.0;  // of JavaScript's safe integers

// A whole number from `least` to `most`.
int64_t integerOf(const Napi::Value& value, const char* name, double least, double most);
DType dtypeOf(const Napi::Value& value);
// The elements of a shape, and of any part of it, fit in an integer.
std::vector<int64_t> shapeOf(const Napi::Value& value, DType dtype);
// The bytes of a typed array, also of one on a SharedArrayBuffer (only the typed-array call is portable there).
std::pair<void*, size_t> bytesOf(const Napi::Value& value);
// The numbers of a Float64Array.
std::pair<const double*, size_t> numbersOf(const Napi::Value& value);
// A place in the tensor's bytes, or their end.
size_t offsetOf(const Napi::Value& value, const Tensor& tensor);
// And back: names as an array.
Napi::Value arrayOf(Napi::Env env, const std::vector<std::string>& names);

}  // namespace densecl

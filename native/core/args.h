// The names of every op's tensors and numbers, from ops.def: args::conv2d::weight. A value holds the op's index and the position, so a
// call refuses a name of another op.
#pragma once
#include <cstdint>

namespace densecl {

enum class OpIndex : int {
#define OP(name, ...) name,
#include "ops.def"
#undef OP
};

namespace args {

constexpr int kPositionBits = 8;
constexpr int firstOf(OpIndex op) { return static_cast<int>(op) << kPositionBits; }

#define OUT(name, type) name
#define IN(name, type) name
#define OPTIONAL(name, type) name
#define OPTIONAL_OUT(name, type) name
#define LIST(name, type) name
#define OPTIONAL_LIST(name, type) name
#define REAL(name) name
#define FLAG(name) name
#define INTEGER(name, least) name
#define LARGE_INTEGER(name, least) name
#define INTEGERS(name, least) name
#define TENSORS(...) enum Tensor : int { beforeTensors = kFirst - 1, __VA_ARGS__ };
#define NUMBERS(...) enum Number : int { beforeNumbers = kFirst - 1, __VA_ARGS__ };
#define OP(name, ...)                                     \
  struct name {                                           \
    static constexpr int kFirst = firstOf(OpIndex::name); \
    __VA_ARGS__                                           \
  };
#include "ops.def"
#undef OP
#undef TENSORS
#undef NUMBERS
#undef OUT
#undef IN
#undef OPTIONAL
#undef OPTIONAL_OUT
#undef LIST
#undef OPTIONAL_LIST
#undef REAL
#undef FLAG
#undef INTEGER
#undef LARGE_INTEGER
#undef INTEGERS

}  // namespace args
}  // namespace densecl

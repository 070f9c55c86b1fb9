// Errors cross the addon as C++ exceptions and become DenseclError in JavaScript, with `code` as its stable name.
#pragma once
#include <stdexcept>
#include <string>

namespace densecl {

struct Error : std::runtime_error {
  Error(const char* code, const std::string& message) : std::runtime_error(message), code(code) {}
  const char* code;
};

inline void require(bool condition, const char* code, const std::string& message) {
  if (!condition) throw Error(code, message);
}

}  // namespace densecl

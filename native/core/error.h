// Errors cross the addon as C++ exceptions and become DenseclError in JavaScript, with `code` as its stable name.
#pragma once
#include <stdexcept>
#include <string>

namespace densecl {

struct Error : std::runtime_error {
  Error(const char* code, const std::string& message) : std::runtime_error(message), code(code) {}
  const char* code;
};

}  // namespace densecl

// Throws an Error where the condition does not hold. A macro, so that the message is made only then: a check may stand in the innermost
// loop, and a function's argument would be a new string for each element.
#define REQUIRE(condition, code, message)                        \
  do {                                                           \
    if (!(condition)) throw ::densecl::Error((code), (message)); \
  } while (false)

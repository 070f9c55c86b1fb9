#include "faults.h"

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "../core/error.h"

namespace densecl::simt {
namespace {

const char* const kNames[] = {"bulkCopy",  "bulkStore", "im2col",   "mbarrier",      "wgmma",   "wgmmaRegisters",
                              "wgmmaE4m3", "mma",       "ldmatrix", "ldmatrixTrans", "cpAsync", "shuffle"};
constexpr size_t kInstructions = sizeof(kNames) / sizeof(kNames[0]);

enum class Fault : unsigned char { none, wrong, hangs };

struct Faults {
  Fault of[kInstructions] = {};
  Faults() {
    const char* text = std::getenv("DENSECL_SIMT_FAULT");
    std::string words = text == nullptr ? "" : text;
    while (!words.empty()) {
      const size_t comma = words.find(',');
      add(words.substr(0, comma));
      words = comma == std::string::npos ? "" : words.substr(comma + 1);
    }
  }
  void add(const std::string& word) {
    const size_t colon = word.find(':');
    const std::string name = word.substr(0, colon), rest = colon == std::string::npos ? "" : word.substr(colon);
    for (size_t i = 0; i < kInstructions; ++i)
      if (name == kNames[i] && (rest.empty() || rest == ":hang")) {
        of[i] = rest.empty() ? Fault::wrong : Fault::hangs;
        return;
      }
    std::string known;
    for (const char* each : kNames) known += (known.empty() ? "" : ", ") + std::string(each);
    throw Error("ARGUMENT", "DENSECL_SIMT_FAULT has " + word + ": expected one of " + known + ", with or without :hang");
  }
};

}  // namespace

bool faulty(Instruction instruction) {
  static const Faults faults;
  const Fault fault = faults.of[static_cast<size_t>(instruction)];
  while (fault == Fault::hangs) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return fault == Fault::wrong;
}

}  // namespace densecl::simt

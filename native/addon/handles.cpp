#include "handles.h"

#include <atomic>
#include <cmath>

namespace densecl {
namespace {
constexpr uint64_t kSlotBits = 23, kGenerationBits = 20, kEnvironmentBits = 10;
constexpr uint64_t mask(uint64_t bits) { return (uint64_t{1} << bits) - 1; }
std::atomic<uint64_t> nextEnvironment{1};
}  // namespace

Handles::Handles() : environment_(nextEnvironment.fetch_add(1) & mask(kEnvironmentBits)) {}

double Handles::insert(Tensor tensor) {
  if (free_.empty()) {
    REQUIRE(slots_.size() <= mask(kSlotBits), "TOO_MANY_TENSORS", "more than 8,388,608 tensors are alive: dispose some, or use scope()");
    free_.push_back(slots_.size());
    slots_.emplace_back();
  }
  const size_t index = free_.back();
  free_.pop_back();
  Slot& slot = slots_[index];
  slot.tensor = std::move(tensor);
  slot.used = true;
  ++live_;
  const uint64_t bits = (environment_ << (kSlotBits + kGenerationBits)) | (slot.generation << kSlotBits) | index;
  return static_cast<double>(bits);
}

size_t Handles::find(double handle, const char* op) const {
  const std::string where = std::string(op) + ": ";
  REQUIRE(handle >= 0 && handle <= 9007199254740991.0 && handle == std::floor(handle), "FOREIGN_HANDLE",
          where + "this is not a tensor handle");
  const uint64_t bits = static_cast<uint64_t>(handle);
  const size_t index = bits & mask(kSlotBits);
  REQUIRE(bits >> (kSlotBits + kGenerationBits) == environment_ && index < slots_.size(), "FOREIGN_HANDLE",
          where + "the tensor belongs to another thread or addon; tensors cannot be sent between workers, send their data");
  REQUIRE(slots_[index].used && slots_[index].generation == ((bits >> kSlotBits) & mask(kGenerationBits)), "USE_AFTER_DISPOSE",
          where + "the tensor has been disposed");
  return index;
}

const Tensor& Handles::get(double handle, const char* op) const { return slots_[find(handle, op)].tensor; }

void Handles::dispose(double handle) {
  const size_t index = find(handle, "dispose");
  Slot& slot = slots_[index];
  slot.tensor = Tensor{};
  slot.used = false;
  slot.generation = (slot.generation + 1) & mask(kGenerationBits);
  free_.push_back(index);
  --live_;
}

}  // namespace densecl

// Tensor handles of one JavaScript environment. A handle is a safe integer: environment (10 bits), generation (20 bits),
// slot (23 bits). A disposed slot gets a new generation, so a stale handle is recognised; one of another environment
// (a worker thread) is recognised by its environment.
#pragma once
#include <string>
#include <vector>

#include "../core/allocator.h"

namespace densecl {

class Handles {
 public:
  Handles();

  double insert(Tensor tensor);
  const Tensor& get(double handle, const char* op) const;
  void dispose(double handle);
  size_t live() const { return live_; }
  void clear() { slots_.clear(); }

 private:
  struct Slot {
    Tensor tensor;
    uint64_t generation = 0;
    bool used = false;
  };
  size_t find(double handle, const char* op) const;

  std::vector<Slot> slots_;
  std::vector<size_t> free_;
  uint64_t environment_;
  size_t live_ = 0;
};

}  // namespace densecl

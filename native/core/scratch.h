// Scratch memory of an op of the CPU: from the device's allocator or, where a recorded step is replayed, from what is free of its arena.
#pragma once
#include <vector>

#include "allocator.h"

namespace densecl {

// `kept` is what the op leaves with a tensor: it must not lie where memory is free for as long as the op lasts.
enum class Life { op, kept };
class ScratchBlock {
 public:
  ScratchBlock(size_t bytes, Life life);
  ~ScratchBlock();
  ScratchBlock(const ScratchBlock&) = delete;
  ScratchBlock& operator=(const ScratchBlock&) = delete;
  void* block() const { return block_; }

 private:
  const size_t bytes_;
  void* block_;
  bool lent_;
};

// While it lives, scratch memory of this thread lies in these gaps as far as they reach.
class Loan {
 public:
  explicit Loan(const std::vector<Gap>& gaps);
  ~Loan();
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
};

template <class T>
class Scratch {
 public:
  explicit Scratch(size_t count, Life life = Life::op) : memory_(count * sizeof(T) + 64, life) {}
  T* data() { return static_cast<T*>(memory_.block()); }
  T& operator[](size_t i) { return data()[i]; }

 private:
  ScratchBlock memory_;
};

}  // namespace densecl

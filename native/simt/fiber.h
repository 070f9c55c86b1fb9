// Stackful fibers: a function with a stack of its own that can be left in the middle and entered again.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>

#if defined(__x86_64__) && !defined(DENSECL_UCONTEXT)
#define DENSECL_FIBER_ASM 1
#else
#include <ucontext.h>
#endif

namespace densecl::simt {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 256 << 10;

  // The stack of the OS thread, from which fibers are entered.
  struct Outside;

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;

  // Makes the next enter(), leaveFor() or leaveForGood() start body(), which must end by a call of leaveForGood().
  void start(Outside& outside, void (*body)(void*), void* argument);
  // From outside into the fiber, from inside it into another of the same outside, and back; for good into another that has begun, or back.
  void enter();
  void leaveFor(Fiber& other);
  void leave();
  void leaveForGood(Fiber* other);

 private:
  static void trampoline();
  void arrived();
  char* stack_;
  size_t used_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  Outside* outside_ = nullptr;
#if DENSECL_FIBER_ASM
  void* inside_ = nullptr;
#else
  ucontext_t inside_;
#endif
  void* fake_ = nullptr;  // of AddressSanitizer
  bool ended_ = false;    // by leaveForGood()
};

struct Fiber::Outside {
#if DENSECL_FIBER_ASM
  void* left = nullptr;
#else
  ucontext_t left;
#endif
  // Bookkeeping of AddressSanitizer, which must know which stack is in use.
  void* fake = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
  bool justLeft = false;
};

}  // namespace densecl::simt

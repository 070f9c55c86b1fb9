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

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;

  // Makes the next enter() start body(), which must end by a call of leaveForGood().
  void start(void (*body)(void*), void* argument);
  // From the scheduler into the fiber, and back from inside it.
  void enter();
  void leave();
  void leaveForGood();

 private:
  static void trampoline();
  char* stack_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
#if DENSECL_FIBER_ASM
  void* inside_ = nullptr;
  void* outside_ = nullptr;
#else
  ucontext_t inside_, outside_;
#endif
  // Bookkeeping of AddressSanitizer, which must know which stack is in use.
  void* fakeInside_ = nullptr;
  void* fakeOutside_ = nullptr;
  const void* outsideBottom_ = nullptr;
  size_t outsideSize_ = 0;
};

}  // namespace densecl::simt

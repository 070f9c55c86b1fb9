#include "fiber.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN(statement) statement
#else
#define ASAN(statement)
#endif

namespace densecl::simt {
namespace {

__thread Fiber* starting __attribute__((tls_model("initial-exec"))) = nullptr;

#if DENSECL_FIBER_ASM
// Keeps the place and the stack in `save` and goes on at those of `load`. Part of its caller, and with a jump instead of a return, so that
// the processor foresees where it leads: fibers mostly leave and go on at one and the same place.
__attribute__((always_inline)) inline void switchStack(void*& save, void* load) {
  void** to = &save;
  asm volatile(R"(
    leaq -128(%%rsp), %%rsp
    pushq %%rbp
    leaq 1f(%%rip), %%rax
    pushq %%rax
    movq %%rsp, (%%rdi)
    movq %%rsi, %%rsp
    popq %%rax
    jmp *%%rax
  1:
    popq %%rbp
    leaq 128(%%rsp), %%rsp
  )"
               : "+D"(to), "+S"(load)
               :
               : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
                 "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
}
#else
inline void switchStack(ucontext_t& save, ucontext_t& load) { swapcontext(&save, &load); }
#endif

}  // namespace

Fiber::Fiber() {
  // Frames at the same place of every page would share few lines of the cache: stacks begin some lines apart.
  static std::atomic<unsigned> made{0};
  used_ = kStackBytes - made++ % 61 * 64;
  stack_ = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stack_ == MAP_FAILED) throw std::bad_alloc();
}

Fiber::~Fiber() { munmap(stack_, kStackBytes); }

void Fiber::trampoline() {
  Fiber* self = starting;
  self->arrived();
  self->body_(self->argument_);
}

// What a fiber does first when it goes on.
void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_, &bottom, &size);
  if (!outside_->justLeft) return;
  outside_->bottom = bottom;
  outside_->size = size;
  outside_->justLeft = false;
#endif
}

void Fiber::start(Outside& outside, void (*body)(void*), void* argument) {
  outside_ = &outside;
  body_ = body;
  argument_ = argument;
  fake_ = nullptr;
  // The marks of frames that were left in the middle.
  ASAN(if (!ended_) __asan_unpoison_memory_region(stack_, kStackBytes);)
  ended_ = false;
#if DENSECL_FIBER_ASM
  // As switchStack leaves it: the place, and above it a stack that is aligned as after a call.
  void** frame = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack_) + used_) & ~uintptr_t{15}) - 2;
  frame[0] = reinterpret_cast<void*>(&Fiber::trampoline);
  frame[1] = nullptr;
  inside_ = frame;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_;
  inside_.uc_stack.ss_size = used_;
  inside_.uc_link = nullptr;
  makecontext(&inside_, &Fiber::trampoline, 0);
#endif
}

void Fiber::enter() {
  starting = this;
  outside_->justLeft = true;
  ASAN(__sanitizer_start_switch_fiber(&outside_->fake, stack_, kStackBytes);)
  switchStack(outside_->left, inside_);
  ASAN(__sanitizer_finish_switch_fiber(outside_->fake, nullptr, nullptr);)
}

void Fiber::leaveFor(Fiber& other) {
  starting = &other;
  ASAN(__sanitizer_start_switch_fiber(&fake_, other.stack_, kStackBytes);)
  switchStack(inside_, other.inside_);
  arrived();
}

void Fiber::leave() {
  ASAN(__sanitizer_start_switch_fiber(&fake_, outside_->bottom, outside_->size);)
  switchStack(inside_, outside_->left);
  arrived();
}

void Fiber::leaveForGood(Fiber* other) {
  // Only the frames from here up have marks. To clear those of the whole stack for every thread of every block took a third of the time.
  ASAN(char* const frame = static_cast<char*>(__builtin_frame_address(0));
       __asan_unpoison_memory_region(frame, static_cast<size_t>(stack_ + kStackBytes - frame));)
  ended_ = true;
  ASAN(__sanitizer_start_switch_fiber(nullptr, other != nullptr ? other->stack_ : outside_->bottom,
                                      other != nullptr ? kStackBytes : outside_->size);)
  switchStack(inside_, other != nullptr ? other->inside_ : outside_->left);
}

}  // namespace densecl::simt

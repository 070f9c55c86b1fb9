#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define ASAN(statement) statement
#else
#define ASAN(statement)
#endif

#if DENSECL_FIBER_ASM
// densecl_switch(&save, load): pushes the registers that a function must keep, swaps stacks, pops them there.
extern "C" void densecl_switch(void** save, void* load);
asm(R"(
.text
.globl densecl_switch
.hidden densecl_switch
.type densecl_switch, @function
densecl_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size densecl_switch, .-densecl_switch
)");
#endif

namespace densecl::simt {
namespace {
thread_local Fiber* starting = nullptr;
}

Fiber::Fiber() {
  stack_ = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stack_ == MAP_FAILED) throw std::bad_alloc();
}

Fiber::~Fiber() { munmap(stack_, kStackBytes); }

void Fiber::trampoline() {
  Fiber* self = starting;
  ASAN(__sanitizer_finish_switch_fiber(nullptr, &self->outsideBottom_, &self->outsideSize_);)
  self->body_(self->argument_);
}

void Fiber::start(void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  ASAN(__asan_unpoison_memory_region(stack_, kStackBytes);)
#if DENSECL_FIBER_ASM
  // As densecl_switch leaves it: six registers, the return address, and a stack aligned as after a call.
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack_) + kStackBytes) & ~uintptr_t{15};
  void** frame = reinterpret_cast<void**>(top) - 8;
  for (int i = 0; i < 6; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(&Fiber::trampoline);
  frame[7] = nullptr;
  inside_ = frame;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_;
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, &Fiber::trampoline, 0);
#endif
}

void Fiber::enter() {
  starting = this;
  ASAN(__sanitizer_start_switch_fiber(&fakeOutside_, stack_, kStackBytes);)
#if DENSECL_FIBER_ASM
  densecl_switch(&outside_, inside_);
#else
  swapcontext(&outside_, &inside_);
#endif
  ASAN(__sanitizer_finish_switch_fiber(fakeOutside_, nullptr, nullptr);)
}

void Fiber::leave() {
  ASAN(__sanitizer_start_switch_fiber(&fakeInside_, outsideBottom_, outsideSize_);)
#if DENSECL_FIBER_ASM
  densecl_switch(&inside_, outside_);
#else
  swapcontext(&inside_, &outside_);
#endif
  ASAN(__sanitizer_finish_switch_fiber(fakeInside_, &outsideBottom_, &outsideSize_);)
}

void Fiber::leaveForGood() {
  ASAN(__sanitizer_start_switch_fiber(nullptr, outsideBottom_, outsideSize_);)
#if DENSECL_FIBER_ASM
  densecl_switch(&inside_, outside_);
#else
  swapcontext(&inside_, &outside_);
#endif
}

}  // namespace densecl::simt

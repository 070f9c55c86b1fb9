// cp.async (sm_80): 16 bytes from global to shared memory without a register, in groups that are waited for by age.
#pragma once
#include "platform.cuh"

namespace densecl::cuda {

DEVICE unsigned sharedAddress(const void* pointer) {
#if defined(__CUDA_ARCH__)
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
#else
#if defined(__CUDACC__)
  (void)pointer;
  return 0;
#else
  return simt::sharedOffset(pointer);
#endif
#endif
}

// Copies 16 bytes, or writes 16 zero bytes; `from` must be a valid address in both cases.
DEVICE void cpAsync16(void* to, const void* from, bool valid) {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(to)), "l"(from), "r"(valid ? 16 : 0));
#elif !defined(__CUDACC__)
  simt::copyLater(to, from, 16, valid ? 16 : 0);
#endif
}

DEVICE void cpAsyncCommitGroup() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;");
#elif !defined(__CUDACC__)
  simt::cpAsyncCommitGroup();
#endif
}

// Waits until at most kInFlight of this thread's groups are still on their way.
template <int kInFlight>
DEVICE void cpAsyncWaitGroup() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight));
#elif !defined(__CUDACC__)
  simt::cpAsyncWaitGroup(kInFlight);
#endif
}

}  // namespace densecl::cuda

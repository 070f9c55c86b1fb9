#include "system.h"

#include <csignal>

#if defined(_WIN32)

#include <windows.h>

namespace densecl {

namespace {
void (*signalHandler)(int) = nullptr;

// On a thread of its own.
BOOL WINAPI onConsole(DWORD event) {
  if (event != CTRL_C_EVENT && event != CTRL_BREAK_EVENT && event != CTRL_CLOSE_EVENT) return FALSE;
  signalHandler(event == CTRL_C_EVENT ? SIGINT : SIGTERM);
  // A process whose console was closed is ended as soon as this returns, and some seconds later in any case.
  if (event == CTRL_CLOSE_EVENT) Sleep(INFINITE);
  return TRUE;
}
}  // namespace

void stayLoaded() {
  HMODULE library;
  GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN, reinterpret_cast<LPCSTR>(&stayLoaded),
                     &library);
}

void giveLargeBlocksBack() {}

// Large pages are a privilege here, which few accounts have.
void wishForHugePages(void*, size_t) {}

void* reserveAddresses(size_t bytes) { return VirtualAlloc(nullptr, bytes, MEM_RESERVE, PAGE_NOACCESS); }
bool putMemory(void* begin, size_t bytes) { return VirtualAlloc(begin, bytes, MEM_COMMIT, PAGE_READWRITE) != nullptr; }
void discardMemory(void* begin, size_t bytes) { VirtualAlloc(begin, bytes, MEM_RESET, PAGE_READWRITE); }
void returnAddresses(void* begin, size_t) { VirtualFree(begin, 0, MEM_RELEASE); }

size_t machineMemory() {
  MEMORYSTATUSEX status;
  status.dwLength = sizeof status;
  return GlobalMemoryStatusEx(&status) != 0 ? static_cast<size_t>(status.ullTotalPhys) : 0;
}

bool mayUseTiles() { return false; }

void onSignals(void (*handler)(int)) {
  const bool first = signalHandler == nullptr;
  signalHandler = handler;
  if (first) SetConsoleCtrlHandler(onConsole, TRUE);
}

}  // namespace densecl

#else

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace densecl {

namespace {
void (*signalHandler)(int) = nullptr;

void onSignal(int received) {
  const int saved = errno;
  signalHandler(received == SIGINT ? SIGINT : SIGTERM);
  errno = saved;
}
}  // namespace

void stayLoaded() {
  static const int here = 0;
  Dl_info library;
  if (dladdr(&here, &library) != 0) dlopen(library.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
}

void wishForHugePages([[maybe_unused]] void* block, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  madvise(block, bytes, MADV_HUGEPAGE);
#endif
}

void* reserveAddresses(size_t bytes) {
  // Where addresses are counted, whoever needs more of them later would find none.
  rlimit allowed;
  if (getrlimit(RLIMIT_AS, &allowed) != 0 || allowed.rlim_cur != RLIM_INFINITY) return nullptr;
  // Without MAP_NORESERVE, so that putMemory is refused what the machine does not have.
  void* mapped = mmap(nullptr, bytes + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* range = static_cast<char*>(mapped);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(range) % kHugePage) % kHugePage;
  if (before > 0) munmap(range, before);
  munmap(range + before + bytes, kHugePage - before);
  wishForHugePages(range + before, bytes);
  return range + before;
}

bool putMemory(void* begin, size_t bytes) { return mprotect(begin, bytes, PROT_READ | PROT_WRITE) == 0; }

void discardMemory(void* begin, size_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), from = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (from + page - 1) / page * page, end = (from + bytes) / page * page;
#if defined(__linux__)
  constexpr int advice = MADV_DONTNEED;
#else
  constexpr int advice = MADV_FREE;
#endif
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, advice);
}

void returnAddresses(void* begin, size_t bytes) { munmap(begin, bytes); }

size_t machineMemory() {
  const long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
  return pages > 0 && bytes > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(bytes) : 0;
}

void giveLargeBlocksBack() {
#if defined(__GLIBC__)
  if (std::getenv("MALLOC_MMAP_THRESHOLD_") == nullptr) mallopt(M_MMAP_THRESHOLD, 4 << 20);
  if (std::getenv("MALLOC_TRIM_THRESHOLD_") == nullptr) mallopt(M_TRIM_THRESHOLD, 8 << 20);
#endif
}

bool mayUseTiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and the component of the state, of Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

void onSignals(void (*handler)(int)) {
  signalHandler = handler;
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  action.sa_handler = onSignal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR2}) sigaction(signal, &action, nullptr);
}

}  // namespace densecl

#endif

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
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cerrno>
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

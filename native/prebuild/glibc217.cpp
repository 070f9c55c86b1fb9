// What a static libstdc++ of today asks of glibc beyond version 2.17, for addons that load on older systems (scripts/prebuild.mjs). All of
// it is hidden, so that nobody else sees it.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

extern "C" {

// libstdc++ leaves out atomic instructions where this is true; 0 is always right.
char __libc_single_threaded = 0;

// The seed of std::random_device.
int getentropy(void* buffer, size_t length) {
  auto* at = static_cast<char*>(buffer);
  while (length > 0) {
    const long got = syscall(SYS_getrandom, at, length, 0);
    if (got <= 0) return -1;
    at += got;
    length -= static_cast<size_t>(got);
  }
  return 0;
}

uint32_t arc4random() {
  uint32_t value = 0;
  if (getentropy(&value, sizeof value) != 0) std::abort();
  return value;
}

}  // extern "C"

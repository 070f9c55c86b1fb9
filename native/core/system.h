// What the engine asks of the operating system beyond C++'s own library, here and nowhere else: POSIX, and Windows.
#pragma once
#include <cstddef>

namespace densecl {

// Keeps this library in memory. Node unloads an addon when the last worker thread that had loaded it ends, with threads of a pool still in
// its code.
void stayLoaded();

// Pages of 2 MiB for a block that can hold one: those of 4 KiB are too many for the processor's table of them. A wish: without such pages
// all works as well, only slower.
constexpr size_t kHugePage = size_t{2} << 20;
void wishForHugePages(void* block, size_t bytes);

// Addresses for so many bytes, in whole huge pages: null where the system has none to give, or limits them. They cost nothing until memory
// is put behind a part of them, false where there is none. discardMemory gives that of whole pages back: its values are lost, and it comes
// again as it is written.
void* reserveAddresses(size_t bytes);
bool putMemory(void* begin, size_t bytes);
void discardMemory(void* begin, size_t bytes);
void returnAddresses(void* begin, size_t bytes);
// Of the machine, in bytes; 0 where the system does not say.
size_t machineMemory();

// Has glibc give blocks of 4 MiB and more back to the system when they are freed, as it does with 128 KiB until the first such block is
// freed: then it keeps what is not larger than that one, up to 32 MiB. What was drawn for the weights of a network would stay for good.
// Whoever sets MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ keeps that.
void giveLargeBlocksBack();

// Whether this process may use the tile registers of a processor that has them: their state is large, and kernels save it on request.
bool mayUseTiles();

// From now on SIGINT and SIGTERM call `handler`, on any thread and in the middle of anything. SIGHUP (the terminal was closed) and SIGUSR2
// stand for SIGTERM; on Windows, which has no signals between processes, Ctrl+C stands for SIGINT, and Ctrl+Break and the closing of the
// console, which leaves some seconds, for SIGTERM.
void onSignals(void (*handler)(int signal));

}  // namespace densecl

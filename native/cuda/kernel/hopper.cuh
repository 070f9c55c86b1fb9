// What sm_90a adds: barriers that count bytes, bulk copies of tensor boxes (TMA) that arrive at them, and wgmma, which multiplies
// tiles of shared memory by a warpgroup of 128 threads. Layouts are those of the PTX manual ("Matrix descriptor", "Strides",
// "Tensor im2col mode"); everything here uses the 128-byte swizzle: in a block of 8 lines of 128 bytes, chunk c of 16 bytes of line
// l lies at chunk c xor l. Host bodies are in native/simt/hopper.h.
#pragma once
#include "async.cuh"
#include "vector.cuh"
#if !defined(__CUDACC__)
#include "../../simt/hopper.h"
#endif

namespace densecl::cuda {

constexpr int kWarpgroup = 128;

// A description of a tensor in global memory for bulk copies, made by the host (native/cuda/tensorMap.h).
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

struct Mbarrier {
  uint64_t word;
};

// True in one lane of a whole warp. The compiler then knows that a single thread goes on, and keeps its addresses in uniform registers.
DEVICE bool electLane() {
#if defined(DENSECL_HOPPER)
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred chosen;\n"
      "elect.sync _|chosen, 0xffffffff;\n"
      "selp.b32 %0, 1, 0, chosen;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
#else
  syncWarp();
  return laneIndex() == 0;
#endif
}

// `arrivals` and the announced bytes complete a phase. By one thread, before fenceMbarrierInit() and a barrier of the block.
DEVICE void mbarrierInit(Mbarrier& barrier, int arrivals) {
#if defined(DENSECL_HOPPER)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(sharedAddress(&barrier)), "r"(arrivals) : "memory");
#elif !defined(__CUDACC__)
  simt::mbarrierInit(&barrier, arrivals);
#endif
}

DEVICE void fenceMbarrierInit() {
#if defined(DENSECL_HOPPER)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

DEVICE void mbarrierArrive(Mbarrier& barrier) {
#if defined(DENSECL_HOPPER)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(sharedAddress(&barrier)) : "memory");
#elif !defined(__CUDACC__)
  simt::mbarrierArrive(&barrier, 0);
#endif
}

// Arrives, and holds the phase up for `bytes` of bulk copies.
DEVICE void mbarrierArriveExpectTx(Mbarrier& barrier, int bytes) {
#if defined(DENSECL_HOPPER)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(sharedAddress(&barrier)), "r"(bytes) : "memory");
#elif !defined(__CUDACC__)
  simt::mbarrierArrive(&barrier, bytes);
#endif
}

// Waits until the phase of this parity (0 for the first, then 1, 0, ...) is complete.
DEVICE void mbarrierWaitParity(Mbarrier& barrier, int parity) {
#if defined(DENSECL_HOPPER)
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}" ::"r"(sharedAddress(&barrier)),
      "r"(parity)
      : "memory");
#elif !defined(__CUDACC__)
  simt::mbarrierWaitParity(&barrier, parity);
#endif
}

// A barrier of kThreads threads of the block, whole warps, by number (0 is __syncthreads).
template <int kThreads>
DEVICE void namedBarrierSync(int number) {
#if defined(__CUDA_ARCH__)
  asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(kThreads) : "memory");
#elif !defined(__CUDACC__)
  simt::namedBarrier(number, kThreads);
#endif
}

// Brings the map itself near, before the first copy asks for it. The map is a parameter of the kernel.
DEVICE void prefetchTensorMap([[maybe_unused]] const TensorMap& map) {
#if defined(DENSECL_HOPPER)
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

// Copies the box at (x, y) or (x, y, z) of a tiled map; what lies outside of the tensor becomes zero.
DEVICE void tmaLoad(void* to, const TensorMap& map, Mbarrier& barrier, int x, int y) {
#if defined(DENSECL_HOPPER)
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(sharedAddress(to)),
      "l"(&map), "r"(sharedAddress(&barrier)), "r"(x), "r"(y)
      : "memory");
#elif !defined(__CUDACC__)
  simt::tmaLoad(to, &map, &barrier, {x, y, 0});
#endif
}
DEVICE void tmaLoad(void* to, const TensorMap& map, Mbarrier& barrier, int x, int y, int z) {
#if defined(DENSECL_HOPPER)
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   sharedAddress(to)),
               "l"(&map), "r"(sharedAddress(&barrier)), "r"(x), "r"(y), "r"(z)
               : "memory");
#elif !defined(__CUDACC__)
  simt::tmaLoad(to, &map, &barrier, {x, y, z});
#endif
}

// Lets bulk copies that are asked for behind a barrier read what this thread has written to shared memory.
DEVICE void fenceProxyAsync() {
#if defined(DENSECL_HOPPER)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::fenceProxyAsync();
#endif
}

// Stores the box at (x, y) of a tiled map; what lies outside of the tensor is left out. All the waits for it are of the thread that asked.
DEVICE void tmaStore(const TensorMap& map, const void* from, int x, int y) {
#if defined(DENSECL_HOPPER)
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(sharedAddress(from)), "r"(x),
               "r"(y)
               : "memory");
#elif !defined(__CUDACC__)
  simt::tmaStore(from, &map, x, y);
#endif
}
DEVICE void bulkCommitGroup() {
#if defined(DENSECL_HOPPER)
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::bulkCommitGroup();
#endif
}
// Waits until the stores that this thread has committed have read shared memory, which may then be written again.
DEVICE void bulkWaitRead() {
#if defined(DENSECL_HOPPER)
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::bulkWait();
#endif
}
// Waits until they are done.
DEVICE void bulkWait() {
#if defined(DENSECL_HOPPER)
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::bulkWait();
#endif
}

// Copies a column of pixels in im2col mode: from pixel (w, h, n) on through the map's bounding box, each moved by the offsets.
DEVICE void tmaLoadIm2col(void* to, const TensorMap& map, Mbarrier& barrier, int channel, int w, int h, int n, int offsetW, int offsetH) {
#if defined(DENSECL_HOPPER)
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::
          "r"(sharedAddress(to)),
      "l"(&map), "r"(sharedAddress(&barrier)), "r"(channel), "r"(w), "r"(h), "r"(n), "h"(static_cast<unsigned short>(offsetW)),
      "h"(static_cast<unsigned short>(offsetH))
      : "memory");
#elif !defined(__CUDACC__)
  simt::tmaLoadIm2col(to, &map, &barrier, channel, w, h, n, offsetW, offsetH);
#endif
}

// The shared-memory matrix descriptor of a wgmma operand with the 128-byte swizzle (PTX manual, "Matrix descriptor"): start address,
// leading dimension byte offset (LBO) and stride dimension byte offset (SBO), each in units of 16 bytes. K-major operands have SBO from
// 8 rows to the next 8, and LBO is not read; MN-major ones have LBO from 64 rows to the next 64 and SBO from 8 of the depth to the next 8.
DEVICE uint64_t smemDescriptor(const void* start, int leadingByteOffset, int strideByteOffset) {
  const uint64_t address = sharedAddress(start);
  return (address & 0x3ffff) >> 4 | static_cast<uint64_t>((leadingByteOffset & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((strideByteOffset & 0x3ffff) >> 4) << 32 | uint64_t{1} << 62;
}

// Registers of accumulators are not touched by others between these two.
DEVICE void wgmmaFence() {
#if defined(DENSECL_HOPPER)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
DEVICE void wgmmaCommitGroup() {
#if defined(DENSECL_HOPPER)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#elif !defined(__CUDACC__)
  simt::wgmmaCommitGroup();
#endif
}
// Waits until at most kInFlight committed groups of this warpgroup are not done.
template <int kInFlight>
DEVICE void wgmmaWaitGroup() {
#if defined(DENSECL_HOPPER)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
#elif !defined(__CUDACC__)
  simt::wgmmaWaitGroup(kInFlight);
#endif
}

#define DENSECL_ROW4(c, j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define DENSECL_ROWS8(c, j)                                                                                           \
  DENSECL_ROW4(c, j), DENSECL_ROW4(c, j + 1), DENSECL_ROW4(c, j + 2), DENSECL_ROW4(c, j + 3), DENSECL_ROW4(c, j + 4), \
      DENSECL_ROW4(c, j + 5), DENSECL_ROW4(c, j + 6), DENSECL_ROW4(c, j + 7)
// The numbers of the operands that hold c: of 8, 16 and 32 of its tiles.
#define DENSECL_SUMS8 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define DENSECL_SUMS16 \
  DENSECL_SUMS8        \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define DENSECL_SUMS32                                                                                                               \
  DENSECL_SUMS16                                                                                                                     \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95" \
  ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"                                                     \
  ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// c [64][kN] += a [64][16] b [16][kN] of bf16; kRowsA: lines of a run along its rows instead of the depth; the same for b. c is laid
// out as by mma.cuh: warp w of the group has rows 16 w .., c[j] is its tile of columns 8 j ...
template <int kN, bool kRowsA, bool kRowsB>
DEVICE void wgmma(float (&c)[kN / 8][4], uint64_t a, uint64_t b) {
  static_assert(kN == 64 || kN == 128 || kN == 256, "the widths that are spelled out");
#if defined(DENSECL_HOPPER)
  if constexpr (kN == 64)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{" DENSECL_SUMS8
        "}, "
        "%32, %33, 1, 1, 1, %34, %35;"
        : DENSECL_ROWS8(c, 0)
        : "l"(a), "l"(b), "n"(static_cast<int>(kRowsA)), "n"(static_cast<int>(kRowsB)));
  else if constexpr (kN == 128)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{" DENSECL_SUMS16
        "}, "
        "%64, %65, 1, 1, 1, %66, %67;"
        : DENSECL_ROWS8(c, 0), DENSECL_ROWS8(c, 8)
        : "l"(a), "l"(b), "n"(static_cast<int>(kRowsA)), "n"(static_cast<int>(kRowsB)));
  else
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{" DENSECL_SUMS32
        "}, "
        "%128, %129, 1, 1, 1, %130, %131;"
        : DENSECL_ROWS8(c, 0), DENSECL_ROWS8(c, 8), DENSECL_ROWS8(c, 16), DENSECL_ROWS8(c, 24)
        : "l"(a), "l"(b), "n"(static_cast<int>(kRowsA)), "n"(static_cast<int>(kRowsB)));
#elif !defined(__CUDACC__)
  simt::wgmma({&c[0][0], a, b, kN, kRowsA, kRowsB});
#endif
}

// The same with a in registers, in the layout of mma.cuh's left operand, which stay as they are until the product is waited for.
template <int kN, bool kRowsB>
DEVICE void wgmmaRegisters(float (&c)[kN / 8][4], const uint32_t (&a)[4], uint64_t b) {
  static_assert(kN == 64 || kN == 128 || kN == 256, "the widths that are spelled out");
#if defined(DENSECL_HOPPER)
  if constexpr (kN == 64)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{" DENSECL_SUMS8
        "}, "
        "{%32,%33,%34,%35}, %36, 1, 1, 1, %37;"
        : DENSECL_ROWS8(c, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(static_cast<int>(kRowsB)));
  else if constexpr (kN == 128)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{" DENSECL_SUMS16
        "}, "
        "{%64,%65,%66,%67}, %68, 1, 1, 1, %69;"
        : DENSECL_ROWS8(c, 0), DENSECL_ROWS8(c, 8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(static_cast<int>(kRowsB)));
  else
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{" DENSECL_SUMS32
        "}, "
        "{%128,%129,%130,%131}, %132, 1, 1, 1, %133;"
        : DENSECL_ROWS8(c, 0), DENSECL_ROWS8(c, 8), DENSECL_ROWS8(c, 16), DENSECL_ROWS8(c, 24)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(static_cast<int>(kRowsB)));
#elif !defined(__CUDACC__)
  simt::wgmma({&c[0][0], 0, b, kN, false, kRowsB, a});
#endif
}

// c [64][kN] += a [64][32] b [32][kN] of E4M3, both along the depth. Sums are carried with fewer bits than a float has (about 14 of a
// mantissa, as DeepSeek-V3 found, arXiv:2412.19437), which is more than the operands say.
template <int kN>
DEVICE void wgmmaE4m3(float (&c)[kN / 8][4], uint64_t a, uint64_t b) {
  static_assert(kN == 64 || kN == 128 || kN == 256, "the widths that are spelled out");
#if defined(DENSECL_HOPPER)
  if constexpr (kN == 64)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 "
        "{" DENSECL_SUMS8
        "}, "
        "%32, %33, 1, 1, 1;"
        : DENSECL_ROWS8(c, 0)
        : "l"(a), "l"(b));
  else if constexpr (kN == 128)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 "
        "{" DENSECL_SUMS16
        "}, "
        "%64, %65, 1, 1, 1;"
        : DENSECL_ROWS8(c, 0), DENSECL_ROWS8(c, 8)
        : "l"(a), "l"(b));
  else
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 "
        "{" DENSECL_SUMS32
        "}, "
        "%128, %129, 1, 1, 1;"
        : DENSECL_ROWS8(c, 0), DENSECL_ROWS8(c, 8), DENSECL_ROWS8(c, 16), DENSECL_ROWS8(c, 24)
        : "l"(a), "l"(b));
#elif !defined(__CUDACC__)
  simt::wgmma({&c[0][0], a, b, kN, false, false, nullptr, true});
#endif
}
#undef DENSECL_SUMS32
#undef DENSECL_SUMS16
#undef DENSECL_SUMS8
#undef DENSECL_ROWS8
#undef DENSECL_ROW4

// Moves registers between the warpgroups of a block: a producer needs few. The whole warpgroup calls it.
template <int kRegisters>
DEVICE void setmaxnregDec() {
#if defined(DENSECL_HOPPER)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
DEVICE void setmaxnregInc() {
#if defined(DENSECL_HOPPER)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

}  // namespace densecl::cuda

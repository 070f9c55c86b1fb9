// The host bodies of native/cuda/kernel/hopper.cuh: barriers that count bytes, bulk tensor copies and wgmma. Products
// happen as late as the program allows, when their group is waited for, and so do copies: when somebody waits for their barrier or
// their group, or at once for some of them where threads are shuffled. What is read or overwritten too early then shows.
#pragma once
#include <cstdint>

namespace densecl::simt {

// What a TensorMap holds on the host: a tensor of 16-bit elements, innermost dimension first; strides in bytes.
struct HostTensorMap {
  const unsigned char* address;
  int64_t strides[3];  // of dimensions 1..
  int32_t sizes[4];
  int32_t box[3];                        // tiled; im2col: channels and pixels of a column
  int16_t lower[2], upper[2], steps[2];  // im2col: bounding box corners and traversal strides, w and h
  int8_t rank;
  bool im2col;
};
static_assert(sizeof(HostTensorMap) <= 128, "it takes the place of a CUtensorMap");

struct Box {
  int x, y, z;
};

void mbarrierInit(void* barrier, int arrivals);
void mbarrierArrive(void* barrier, int bytes);
void mbarrierWaitParity(void* barrier, int parity);
void namedBarrier(int number, int threads);
void tmaLoad(void* to, const void* map, void* barrier, Box at);
void tmaLoadIm2col(void* to, const void* map, void* barrier, int channel, int w, int h, int n, int offsetW, int offsetH);

// A store fails unless every thread of its warpgroup, which is to have written the box, has met a fence since the group before.
void fenceProxyAsync();
void tmaStore(const void* from, const void* map, int x, int y);
void bulkCommitGroup();
void bulkWait();

// One lane's part of a wgmma; a and b are descriptors.
struct Product {
  float* c;  // [n / 8][4]
  uint64_t a, b;
  int n;
  bool rowsA, rowsB;
  const uint32_t* registers = nullptr;  // of a, as in mma.cuh; null where it lies in shared memory
  bool e4m3 = false;                    // 32 of the depth in as many bytes, instead of 16 of bf16
};
void wgmma(const Product& product);
void wgmmaCommitGroup();
void wgmmaWaitGroup(int groupsInFlight);

}  // namespace densecl::simt

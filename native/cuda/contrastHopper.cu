// infoNce on Hopper (infoNce.cu has the notes): two warpgroups of 64 queries each pass over tiles of 128 keys that bulk copies bring.
// A tile serves as keys of the first product and as values of the second, whose left operand, the probabilities, stays in registers
// (J. Shah et al., FlashAttention-3, arXiv:2407.08608). While one warpgroup computes exponentials the other multiplies.
#include "contrast.cuh"
#include "kernel/warpgroup.cuh"
#include "tensorMap.h"

namespace densecl::cuda {
namespace {

constexpr int kKeyStages = 4;  // of the ring of keys

template <int kDim>
struct ContrastMemory {
  static constexpr int kBoxes = kDim / kLineElements;
  unsigned char query[kBoxes][kHopperRows * 128];
  unsigned char keys[kKeyStages][kBoxes][kHopperKeys * 128];
  Mbarrier queryFull, full[kKeyStages], empty[kKeyStages];
};

struct HopperContrast {
  ContrastJob<bf16> job;
  TensorMap query, queue;
};

template <int kDim>
DEVICE void produceKeys(const HopperContrast& work, ContrastMemory<kDim>& memory, int64_t begin, int64_t end) {
  constexpr int kBoxes = kDim / kLineElements;
  mbarrierArriveExpectTx(memory.queryFull, kBoxes * kHopperRows * 128);
  for (int box = 0; box < kBoxes; ++box)
    tmaLoad(memory.query[box], work.query, memory.queryFull, box * kLineElements, static_cast<int>(blockIdx.x) * kHopperRows);
  PipelineState<kKeyStages> at;
  for (int64_t first = begin; first < end; first += kHopperKeys, at.advance()) {
    mbarrierWaitParity(memory.empty[at.stage], at.parity ^ 1);
    mbarrierArriveExpectTx(memory.full[at.stage], kBoxes * kHopperKeys * 128);
    for (int box = 0; box < kBoxes; ++box)
      tmaLoad(memory.keys[at.stage][box], work.queue, memory.full[at.stage], box * kLineElements, static_cast<int>(first));
  }
}

template <int kDim, bool kFixed>
DEVICE void contrastKeys(const HopperContrast& work, ContrastMemory<kDim>& memory, int64_t begin, int64_t end) {
  constexpr int kScores = kHopperKeys / 8, kValues = kDim / 8;
  const int groupRow = warpIndex() / 4 * 64;
  float o[kValues][4] = {};
  RowState state;
  PipelineState<kKeyStages> at;
  mbarrierWaitParity(memory.queryFull, 0);
  for (int64_t first = begin; first < end; first += kHopperKeys, at.advance()) {
    mbarrierWaitParity(memory.full[at.stage], at.parity);
    float s[kScores][4] = {};
    fenceRegisters(s);
    wgmmaFence();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step)
      wgmma<kHopperKeys, false, false>(s, operandDescriptor<false>(memory.query[step / 4], groupRow, step % 4),
                                       operandDescriptor<false>(memory.keys[at.stage][step / 4], 0, step % 4));
    wgmmaCommitGroup();
    wgmmaWaitGroup<0>();
    fenceRegisters(s);
    softmaxUpdate<kFixed>(state, s, o, end - first, work.job.inverseTemperature);
    if (work.job.gradient != nullptr) {
      // The accumulators of two neighbouring tiles of keys are, as pairs, the left operand of the next product.
      uint32_t p[kScores / 2][4];
#pragma unroll
      for (int j = 0; j < kScores; ++j)
        for (int half = 0; half < 2; ++half) p[j / 2][j % 2 * 2 + half] = packPair(s[j][half * 2], s[j][half * 2 + 1]);
      fenceRegisters(p);
      fenceRegisters(o);
      wgmmaFence();
#pragma unroll
      for (int j = 0; j < kScores / 2; ++j)
        wgmmaRegisters<kDim, true>(o, p[j], smemDescriptor(memory.keys[at.stage][0] + j * 16 * 128, kHopperKeys * 128, 8 * 128));
      wgmmaCommitGroup();
      wgmmaWaitGroup<0>();
      fenceRegisters(o);
    }
    if (laneIndex() == 0) mbarrierArrive(memory.empty[at.stage]);
  }
  storePartial<kFixed>(work.job, state, o, static_cast<int64_t>(blockIdx.x) * kHopperRows + groupRow + warpIndex() % 4 * 16,
                       static_cast<int>(blockIdx.y));
}

template <int kDim, bool kFixed>
__global__ void __launch_bounds__(3 * kWarpgroup, 1) contrastKernel(const __grid_constant__ HopperContrast work) {
#if defined(DENSECL_HOPPER) || !defined(__CUDACC__)
  auto& memory = sharedMemory<ContrastMemory<kDim>>();
  const int64_t begin = blockIdx.y * work.job.keysPerSplit,
                end = begin + work.job.keysPerSplit < work.job.keys ? begin + work.job.keysPerSplit : work.job.keys;
  if (threadIdx.x == 0) {
    prefetchTensorMap(work.query);
    prefetchTensorMap(work.queue);
    mbarrierInit(memory.queryFull, 1);
    for (int stage = 0; stage < kKeyStages; ++stage) {
      mbarrierInit(memory.full[stage], 1);
      mbarrierInit(memory.empty[stage], 2 * kWarpgroup / kWarp);
    }
    fenceMbarrierInit();
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) >= 2 * kWarpgroup) {
    setmaxnregDec<40>();
    if (warpIndex() == 2 * kWarpgroup / kWarp && electLane()) produceKeys<kDim>(work, memory, begin, end);
  } else {
    setmaxnregInc<232>();
    contrastKeys<kDim, kFixed>(work, memory, begin, end);
  }
#else
  asm("trap;");  // a launcher that asks for it without sm_90a code is a mistake
#endif
}

}  // namespace

bool contrastsOnHopper(const Call& call, DType dtype, int64_t dim) {
  return usable(call, Family::wgmmaInfoNce) && dtype == DType::bf16 && dim <= 128 && dim % 8 == 0;
}

void launchHopperContrast(const Call& call, const ContrastJob<bf16>& job, int64_t rowBlocks, int64_t splits, bool fixed) {
  const HopperContrast work{job, tiledMap(call, job.query, {job.dim, job.rows}, {kLineElements, kHopperRows}),
                            tiledMap(call, job.queue, {job.dim, job.keys}, {kLineElements, kHopperKeys})};
  const Grid grid{rowBlocks, splits};
  if (job.dim <= 64)
    launch(call, fixed ? contrastKernel<64, true> : contrastKernel<64, false>, grid, 3 * kWarpgroup, sizeof(ContrastMemory<64>), work);
  else
    launch(call, fixed ? contrastKernel<128, true> : contrastKernel<128, false>, grid, 3 * kWarpgroup, sizeof(ContrastMemory<128>), work);
}

}  // namespace densecl::cuda

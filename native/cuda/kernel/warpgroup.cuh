// Products on Hopper, warp-specialised: one producer warp brings slices of both operands to a ring in shared memory by bulk copies, two
// warpgroups multiply them with wgmma (the scheme: V. Thakkar et al., CUTLASS 3; J. Shah et al., FlashAttention-3, arXiv:2407.08608).
// Blocks are persistent: while tiles are finished, the slices of the next are on their way.
#pragma once
#include "gemm.cuh"
#include "hopper.cuh"
#include "tile.cuh"

namespace densecl::cuda {

constexpr int kLineElements = 64;  // of bf16: the 128 bytes of a line, the depth of a slice
constexpr int kBoxBytes = 64 * 128;

// A tile of kM x kN by kGroupsM x kGroupsN of the block's two warpgroups. Where one has a tile to itself they take tiles in turn
// (ping-pong): one multiplies while the other finishes its tile. A wgmma reads 64 rows of the left operand and all its columns of the
// right one from shared memory, so that two warpgroups of 64x256 read 640 lines for a slice where those of 128x128 read 768.
template <int kM_, int kN_, int kGroupsM, int kGroupsN>
struct WarpgroupShape {
  static constexpr int kM = kM_, kN = kN_, kTileGroups = kGroupsM * kGroupsN, kConsumers = 2 / kTileGroups,
                       kThreads = kTileGroups * kWarpgroup, kBlock = 3 * kWarpgroup;
  static constexpr int kWarpM = 16, kWarpN = kN / kGroupsN, kMmaM = kM / kGroupsM / 64, kMmaN = kWarpN / 8, kMmaStep = 64;
  static constexpr int kTogether = 4;  // as of TileShape
  static constexpr bool kBulkStores = false;
  // Slots of the ring: of the widest tile three take 144 KiB of the 227 and hold as many cycles of products as six of 128x128.
  static constexpr int kStages = kM + kN > 256 ? 3 : 4;
  // What passes through shared memory at a time when the tile is finished. A tile wider than 128 has no room for that in whole: each
  // warpgroup then stages its own rows, 128 columns after another, and waits for nobody.
  static constexpr int kParts = kN > 128 ? kN / 128 : 1;
  using Part = std::conditional_t<kParts == 1, WarpgroupShape, WarpgroupShape<kM / kGroupsM, 128, 1, 1>>;
  static_assert(kParts == 1 || (kGroupsN == 1 && kN % 128 == 0), "a warpgroup has whole parts");
  static_assert(kM == kMmaM * kGroupsM * 64, "a product of a warpgroup has 64 rows");
  static DEVICE int consumer() { return warpIndex() / 4 / kTileGroups; }
  static DEVICE int thread() { return static_cast<int>(threadIdx.x) % kThreads; }
  static DEVICE void sync() { namedBarrierSync<kThreads>(1 + consumer()); }
  static DEVICE int groupRow() { return warpIndex() / 4 % kTileGroups / kGroupsN * (kM / kGroupsM); }
  static DEVICE int firstRow() { return groupRow() + warpIndex() % 4 * kWarpM; }
  static DEVICE int firstColumn() { return warpIndex() / 4 % kTileGroups % kGroupsN * kWarpN; }
};

// The same of one warpgroup a tile, whose finished tiles one thread stores by bulk copies.
template <class S>
struct BulkStored : S {
  static_assert(S::kTileGroups == 1 && S::kParts == 1, "a warpgroup stages and stores a tile of its own");
  static constexpr bool kBulkStores = true;
  using Part = BulkStored;
  // Who asks for the stores and waits for them: the same lane each time. Whole warps call it.
  static DEVICE bool stores() { return warpIndex() % (kWarpgroup / kWarp) == 0 && electLane(); }
};

// A finished tile, or a part of one, as it is stored, and the sums of its columns.
template <class Shape, class Out>
struct WarpgroupTile {
  static constexpr int kPitch = Shape::kN + Vector<Out>::kLength;
  static DEVICE int place(int row, int column) { return row * kPitch + column; }
  static constexpr bool kSums = std::is_same_v<Out, bf16>;  // weight gradients have none
  Out tile[Shape::kM * kPitch];
  alignas(16) unsigned char sums[kSums ? sizeof(ColumnSums<Shape, Out>) : 16];
};

// Boxes of 64 columns, with the swizzle of bulk copies: rows are a pitch apart where they are whole blocks of 8 apart.
template <class Shape, class Out>
struct WarpgroupTile<BulkStored<Shape>, Out> {
  static_assert(TileThreads<Shape, Out>::kDown % 8 == 0, "the rows of a thread are whole blocks of 8 apart");
  static constexpr int kPitch = kLineElements;
  static DEVICE int place(int row, int column) {
    return (column / kLineElements * Shape::kM + row) * kPitch + ((column / 8 ^ row) % 8) * 8 + column % 8;
  }
  alignas(1024) Out tile[Shape::kM * Shape::kN];
  unsigned char sums[sizeof(ColumnSums<Shape, Out>)];
};

template <class Job>
struct WarpgroupMemory {
  using Shape = typename Job::Shape;
  unsigned char a[Shape::kStages][Shape::kM * 128];
  unsigned char b[Shape::kStages][Shape::kN * 128];
  WarpgroupTile<typename Job::Stored, typename Job::Out> finished[Shape::Part::kConsumers];
  Mbarrier full[Shape::kStages], empty[Shape::kStages], turn[Shape::kConsumers];
};

// The slot of the multistage pipeline (a ring of kStages) and the parity of its phase.
template <int kStages>
struct PipelineState {
  int stage = 0, parity = 0;
  DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
  DEVICE void skip(int slices) {
    const int to = stage + slices;
    stage = to % kStages;
    parity ^= to / kStages & 1;
  }
};

// The descriptor of an operand's part that starts at row `row`, for the `step`-th 16 of a slice's depth, or 32 of E4M3. Along the depth a
// line is a row; along the rows a box of 64 rows has a line for each of the depth.
template <bool kRows>
DEVICE uint64_t operandDescriptor(const unsigned char* operand, int row, int step) {
  if (kRows) return smemDescriptor(operand + row / 64 * kBoxBytes + step * 16 * 128, kBoxBytes, 8 * 128);
  return smemDescriptor(operand + row * 128 + step * 32, 16, 8 * 128);
}

// Keeps the compiler from moving accesses to accumulators across: products are on their way where it cannot see them.
template <int kTiles>
DEVICE void fenceRegisters([[maybe_unused]] float (&c)[kTiles][4]) {
#if defined(__CUDA_ARCH__)
  for (auto& tile : c)
    for (float& value : tile) asm volatile("" : "+f"(value)::"memory");
#endif
}
template <int kTiles>
DEVICE void fenceRegisters([[maybe_unused]] uint32_t (&words)[kTiles][4]) {
#if defined(__CUDA_ARCH__)
  for (auto& tile : words)
    for (uint32_t& word : tile) asm volatile("" : "+r"(word)::"memory");
#endif
}

// The accumulators as the transposed tile in shared memory, whose lines are the columns of the product, as f32.
template <class Shape, class Memory>
DEVICE void stageTransposed(const Accumulators<Shape>& acc, Memory& memory) {
#pragma unroll
  for (int i = 0; i < Shape::kMmaM; ++i)
#pragma unroll
    for (int j = 0; j < Shape::kMmaN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        memory.tile[accumulatorColumn<Shape>(j, e) * Memory::kPitch + accumulatorRow<Shape>(i, e)] = acc.c[i][j][e];
  Shape::sync();
}

// Stages the accumulators, and lets one thread store them to columns and rows of y from the first on, as far as they exist.
template <class Shape, class Memory>
DEVICE void storeBoxes(const Accumulators<Shape>& acc, Memory& memory, const TensorMap& y, int firstColumn, int firstRow) {
  // The rows of a thread are whole blocks of 8 apart, and every 8 columns are another chunk of its lines.
  const int first = Memory::place(accumulatorRow<Shape>(0, 0), accumulatorColumn<Shape>(0, 0));
#pragma unroll
  for (int j = 0; j < Shape::kMmaN; ++j)
#pragma unroll
    for (int i = 0; i < Shape::kMmaM; ++i)
#pragma unroll
      for (int e = 0; e < 4; e += 2)
        store(&memory.tile[(first ^ j % 8 * 8) + (j / 8 * Shape::kM + i * Shape::kMmaStep + e / 2 * 8) * Memory::kPitch],
              Elements<bf16, 2>{bf16(acc.c[i][j][e]), bf16(acc.c[i][j][e + 1])});
  fenceProxyAsync();
  Shape::sync();
  if (Shape::stores()) {
    for (int column = 0; column < Shape::kN; column += kLineElements)
      tmaStore(y, &memory.tile[Shape::kM * column], firstColumn + column, firstRow);
    bulkCommitGroup();
  }
  syncWarp();
}

// A slice whose operands are both multiplied as they lie in shared memory.
template <class Job, class Shape, class Memory>
DEVICE void multiplyTiles(Accumulators<Shape>& acc, const Memory& memory, int stage) {
  wgmmaFence();
#pragma unroll
  for (int step = 0; step < kLineElements / 16; ++step)
#pragma unroll
    for (int i = 0; i < Shape::kMmaM; ++i) {
      const uint64_t a = operandDescriptor<Job::kRowsA>(memory.a[stage], Shape::groupRow() + i * Shape::kMmaStep, step),
                     b = operandDescriptor<Job::kRowsB>(memory.b[stage], Shape::firstColumn(), step);
      if constexpr (Job::kE4m3)
        wgmmaE4m3<Shape::kWarpN>(acc.c[i], a, b);
      else
        wgmma<Shape::kWarpN, Job::kRowsA, Job::kRowsB>(acc.c[i], a, b);
    }
  wgmmaCommitGroup();
  wgmmaWaitGroup<1>();
}

template <class Job, class Shape, class Memory>
DEVICE void produce(const Job& job, Memory& memory) {
  PipelineState<Shape::kStages> at;
  for (int tile = static_cast<int>(blockIdx.x); tile < job.tiles; tile += static_cast<int>(gridDim.x)) {
    auto walk = job.start(tile);
#pragma unroll 1
    for (int slices = job.slices(tile); slices > 0; --slices, at.advance()) {
      mbarrierWaitParity(memory.empty[at.stage], at.parity ^ 1);
      mbarrierArriveExpectTx(memory.full[at.stage], (Shape::kM + Shape::kN) * 128);
      job.load(walk, memory.a[at.stage], memory.b[at.stage], memory.full[at.stage]);
      job.advance(walk);
    }
  }
}

// What becomes of a tile whose products are done, part by part.
template <class Job, class Shape, class Memory>
DEVICE void finishTileParts(const Job& job, int tile, Accumulators<Shape>& acc, Memory& staged) {
  using Part = typename Shape::Part;
  if constexpr (Shape::kParts == 1) {
    job.finish(tile, 0, 0, acc, staged);
  } else {
#pragma unroll
    for (int part = 0; part < Shape::kParts; ++part) {
      Accumulators<Part> own;
#pragma unroll
      for (int i = 0; i < Part::kMmaM; ++i)
#pragma unroll
        for (int j = 0; j < Part::kMmaN; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) own.c[i][j][e] = acc.c[i][part * Part::kMmaN + j][e];
      if (part > 0) Part::sync();  // everybody has finished with the part before
      job.finish(tile, Shape::groupRow(), part * Part::kN, own, staged);
    }
  }
}

template <class Job, class Shape, class Memory>
DEVICE void consume(const Job& job, Memory& memory) {
  constexpr bool kTurns = Shape::kConsumers > 1;
  const int consumer = Shape::Part::consumer();  // whose turn a tile is, and who stages
  PipelineState<Shape::kStages> at;
  int taken = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < job.tiles; tile += static_cast<int>(gridDim.x), ++taken) {
    const int slices = job.slices(tile);
    if (kTurns && taken % Shape::kConsumers != consumer) {
      at.skip(slices);
      continue;
    }
    Accumulators<Shape> acc;
    acc.clear();
#pragma unroll
    for (int i = 0; i < Shape::kMmaM; ++i) fenceRegisters(acc.c[i]);
    // The parity of a barrier tells a phase from its neighbours alone: who waits has seen the phase before, or somebody has whom it waited
    // for.
    if (kTurns) mbarrierWaitParity(memory.turn[consumer], (taken / Shape::kConsumers & 1) ^ (consumer == 0 ? 1 : 0));
    int before = 0;
    [[maybe_unused]] uint32_t fragments[2][Shape::kMmaM][4];  // products read them until they are waited for
    const auto release = [&](int slice) {
      if (slice > 0 && laneIndex() == 0) mbarrierArrive(memory.empty[before]);
    };
    if constexpr (Job::kFragments) {
      // The left operand passes through registers: a group of products for each 16 of the depth, beside which the fragments of the next
      // are made.
      auto left = job.left(tile);
      uint32_t words[Shape::kMmaM][4];
      for (int slice = 0; slice < slices; ++slice, at.advance()) {
        if (slice > 0) left.advance();
        mbarrierWaitParity(memory.full[at.stage], at.parity);
        left.load(words, memory.a[at.stage], 0);
#pragma unroll
        for (int step = 0; step < kLineElements / 16; ++step) {
          left.normalise(fragments[step % 2], words, step);
          if (step + 1 < kLineElements / 16) left.load(words, memory.a[at.stage], step + 1);
          wgmmaFence();
#pragma unroll
          for (int i = 0; i < Shape::kMmaM; ++i)
            wgmmaRegisters<Shape::kWarpN, Job::kRowsB>(acc.c[i], fragments[step % 2][i],
                                                       operandDescriptor<Job::kRowsB>(memory.b[at.stage], Shape::firstColumn(), step));
          wgmmaCommitGroup();
          wgmmaWaitGroup<1>();
          if (step == 0) release(slice);
        }
        before = at.stage;
      }
    } else {
      for (int slice = 0; slice < slices; ++slice, at.advance()) {
        mbarrierWaitParity(memory.full[at.stage], at.parity);
        multiplyTiles<Job>(acc, memory, at.stage);
        release(slice);
        before = at.stage;
      }
    }
    if (kTurns && laneIndex() == 0) mbarrierArrive(memory.turn[consumer ^ 1]);
    wgmmaWaitGroup<0>();
#pragma unroll
    for (int i = 0; i < Shape::kMmaM; ++i) fenceRegisters(acc.c[i]);
    release(slices);
    if constexpr (Shape::kBulkStores)
      if (Shape::stores()) bulkWaitRead();
    Shape::Part::sync();  // everybody has finished with the tile before
    // A branch that is always taken: without one ptxas moves conversions of accumulators into the loop above and then runs its
    // products one after another (its message C7514).
    if (tile >= 0) finishTileParts(job, tile, acc, memory.finished[consumer]);
  }
  if constexpr (Shape::kBulkStores)
    if (Shape::stores()) bulkWait();
}

// A Job says how many tiles there are, how many slices a tile has, how a slice of both operands is copied and where the next is, what
// becomes of the left operand on its way into the product where it passes through registers (kFragments), whether both operands are of
// E4M3 (kE4m3), and what becomes of a finished tile or of each Part of it, `row` and `column` from the tile's first.
template <class Job>
__global__ void __launch_bounds__(Job::Shape::kBlock, 1) productKernel(const __grid_constant__ Job job) {
#if defined(DENSECL_HOPPER) || !defined(__CUDACC__)
  using Shape = typename Job::Shape;
  auto& memory = sharedMemory<WarpgroupMemory<Job>>();
  if (threadIdx.x == 0) {
    job.prefetch();
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      mbarrierInit(memory.full[stage], 1);
      mbarrierInit(memory.empty[stage], Shape::kThreads / kWarp);
    }
    for (Mbarrier& turn : memory.turn) mbarrierInit(turn, Shape::kThreads / kWarp);
    fenceMbarrierInit();
  }
  __syncthreads();
  if (warpIndex() >= 2 * kWarpgroup / kWarp) {
    setmaxnregDec<40>();
    if (warpIndex() == 2 * kWarpgroup / kWarp && electLane()) produce<Job, Shape>(job, memory);
  } else {
    setmaxnregInc<232>();
    consume<Job, Shape>(job, memory);
  }
#else
  asm("trap;");  // a launcher that asks for it without sm_90a code is a mistake
#endif
}

template <class Job>
void launchProduct(const Call& call, const Job& job) {
  static_assert(sizeof(WarpgroupMemory<Job>) <= 227 * 1024, "what a block of Hopper may have of shared memory");
  launch(call, productKernel<Job>, Grid{std::min<int64_t>(job.tiles, multiprocessors(call))}, Job::Shape::kBlock,
         sizeof(WarpgroupMemory<Job>), job);
}

}  // namespace densecl::cuda

// The gradient of RoIAlign, by gathering: a block takes a tile of the map and looks for the boxes that reach it, in their order; a warp
// keeps the sums of some cells and reads each bin once for all of them. No atomic additions, whose order would change the last bits.
#include "roiAlign.cuh"

namespace densecl::cuda {
namespace {

constexpr int kTile = 8;               // rows and columns of a block's tile
constexpr int kDown = 2, kAcross = 4;  // those of a warp's cells
constexpr int kBlock = 16;             // rows and columns of bins at a time
constexpr int kBehind = 4;             // of no weight that are read behind them
constexpr int kTogether = 3;           // rows of bins that a warp has on their way
constexpr int kRounds = 4;             // boxes that a thread looks at before those found take their turn
constexpr int kScan = kRounds * kThreads;

struct Tiles {
  int across, down, chunks;
  int64_t count(int images) const { return static_cast<int64_t>(images) * across * down * chunks; }
};

struct Gathering {
  // Of a warp's box, the weight of each cell of the tile in each of kBlock rows of bins, and in each of kBlock columns.
  float weights[kWarps][2][kBlock + kBehind][kTile];
  // Bit i: rows 2k and 2k + 1 of the tile have weights in row i of the bins; bit 16 + i: the same of columns.
  unsigned masks[kWarps][kTile / 2];
  int boxes[kScan];
  int found[kWarps];  // by each warp
};

// Where samples of an axis may be, beside a tile that starts at a cell.
DEVICE bool meets(const Axis& axis, int origin) {
  const float end = axis.start + axis.bin * static_cast<float>(axis.bins), low = static_cast<float>(origin);
  return axis.samples > 0 && fmaxf(axis.start, end) >= low - 2 && fminf(axis.start, end) <= low + kTile + 1;
}

// A warp finds what the cells of a tile have of a box's bins from row `p` and column `q` on: each lane takes one of either.
DEVICE void weighTile(float (*weights)[kBlock + kBehind][kTile], unsigned* masks, const Boxes& all, int r, int top, int left, int p,
                      int q) {
  const int lane = laneIndex();
  const bool down = lane < kBlock;
  const Axis axis = all.axis(r, down);
  const int bin = down ? p + lane : q + lane - kBlock;
  const float origin = static_cast<float>(down ? top : left);
  float shares[kTile] = {};
  if (bin < axis.bins) {
    // The border's cells stand for what lies outside of them.
    const Range range = axis.within(bin, origin - 1, origin + kTile);
#pragma unroll 1
    for (int i = range.from; i < range.to; ++i) {
      const float position = axis.position(bin, i), at = axis.clamped(position) - origin;
      if (axis.outside(position)) continue;
      for (int k = 0; k < kTile; ++k) shares[k] += fmaxf(1 - fabsf(at - static_cast<float>(k)), 0.0f);
    }
    for (int k = 0; k < kTile; ++k) shares[k] /= static_cast<float>(axis.samples);
  }
  for (int k = 0; k < kTile; k += 4)
    store<float, 4>(&weights[down ? 0 : 1][lane % kBlock][k], Elements<float, 4>{{shares[k], shares[k + 1], shares[k + 2], shares[k + 3]}});
  for (int k = 0; k < kTile / 2; ++k) {
    const unsigned votes = ballot(shares[2 * k] != 0 || shares[2 * k + 1] != 0);
    if (lane == k) masks[k] = votes;
  }
}

// The cells of a warp, by FMA: two rows of four, each lane kWidth channels of them.
template <class T, int kWidth>
struct GatherVectors {
  static constexpr int kChannels = kWarp * kWidth;
  const T* from;
  int pair, quad, c;
  bool stores;
  float sums[kDown][kAcross][kWidth] = {};

  DEVICE GatherVectors(const T* dy, int channels, int chunk)
      : pair(warpIndex() / (kTile / kAcross)),
        quad(warpIndex() % (kTile / kAcross)),
        c(chunk * kChannels + laneIndex() * kWidth),
        stores(c < channels) {
    from = dy + (stores ? c : 0);
  }
  // Adds what the bins of box r send from row p and column q on.
  DEVICE void add(const Gathering& shared, int b, const Boxes& all, int r, int p, int q) {
    unsigned down = shared.masks[b][pair] & 0xffff;
    const unsigned across = (shared.masks[b][2 * quad] | shared.masks[b][2 * quad + 1]) >> 16;
    if (down == 0 || across == 0) return;
    const T* corner = from + ((static_cast<int64_t>(r) * all.p + p) * all.q + q) * all.channels;
    while (down != 0) {
      const T* lines[kTogether];
      Elements<float, kDown> shares[kTogether];
      bool taken[kTogether];
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        taken[t] = down != 0;
        if (!taken[t]) continue;
        const int row = lowestBit(down);
        down &= down - 1;
        lines[t] = corner + static_cast<int64_t>(row * all.q) * all.channels;
        shares[t] = load<float, kDown>(&shared.weights[b][0][row][pair * kDown]);
      }
#pragma unroll 1
      for (unsigned rest = across; rest != 0; rest &= rest - 1) {
        const int column = lowestBit(rest);
        Chunk<T, kWidth> chunks[kTogether];
#pragma unroll
        for (int t = 0; t < kTogether; ++t)
          if (taken[t]) chunks[t] = loadChunk<T, kWidth>(lines[t] + static_cast<int64_t>(column) * all.channels);
        float weighed[kDown][kWidth] = {};
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          if (!taken[t]) continue;
          float values[kWidth];
          unpack(values, chunks[t]);
#pragma unroll
          for (int i = 0; i < kDown; ++i)
            if (shares[t].v[i] != 0)
              for (int e = 0; e < kWidth; ++e) weighed[i][e] += shares[t].v[i] * values[e];
        }
        const auto weight = load<float, kAcross>(&shared.weights[b][1][column][quad * kAcross]);
#pragma unroll
        for (int k = 0; k < kAcross; ++k)
          if (weight.v[k] != 0)
            for (int i = 0; i < kDown; ++i)
              for (int e = 0; e < kWidth; ++e) sums[i][k][e] += weight.v[k] * weighed[i][e];
      }
    }
  }
  DEVICE void finish(T* dx, const Boxes& all, int image, int top, int left) const {
    for (int i = 0; i < kDown; ++i)
      for (int k = 0; k < kAcross; ++k) {
        const int row = top + pair * kDown + i, column = left + quad * kAcross + k;
        if (stores && row < all.rows && column < all.columns)
          storeRounded<T, kWidth>(dx + ((static_cast<int64_t>(image) * all.rows + row) * all.columns + column) * all.channels + c,
                                  sums[i][k]);
      }
  }
};

// By products: four rows of four cells and 128 channels, from four rows of four bins at a time.
struct GatherProducts {
  static constexpr int kGroups = 2, kChannels = 2 * kGroup * kGroups;
  const bf16* from;
  int half, side, c;
  float sums[kGroups][8][4] = {};

  DEVICE GatherProducts(const bf16* dy, int, int chunk)
      : half(warpIndex() / 2 % 2), side(warpIndex() % 2), c(chunk * kChannels + warpIndex() / 4 * (kGroup * kGroups)) {
    from = dy + c + laneIndex() / 4 * 8;
  }
  DEVICE void add(const Gathering& shared, int b, const Boxes& all, int r, int p, int q) {
    const unsigned down = (shared.masks[b][2 * half] | shared.masks[b][2 * half + 1]) & 0xffff;
    const unsigned across = (shared.masks[b][2 * side] | shared.masks[b][2 * side + 1]) >> 16;
    if (down == 0 || across == 0 || c >= all.channels) return;
    const int g = laneIndex() / 4, t = laneIndex() % 4;
    const int words = all.channels / 8;
    const auto* box = reinterpret_cast<const Words<bf16>*>(from) + static_cast<int64_t>(r) * all.p * all.q * words;
#pragma unroll 1
    for (unsigned rows = down; rows != 0;) {
      const int row = lowestBit(rows), i = row + t / 2;
      rows = rows >> row >> 4 << row << 4;
      const float (*vertical)[kTile] = shared.weights[b][0];
      const float* above = &vertical[i][4 * half + g / 4];
      const float* below = &vertical[i + 2][4 * half + g / 4];
      const uint32_t lines[2] = {static_cast<uint32_t>(minimum(p + i, all.p - 1) * all.q * words),
                                 static_cast<uint32_t>(minimum(p + i + 2, all.p - 1) * all.q * words)};
#pragma unroll 1
      for (unsigned columns = across; columns != 0;) {
        const int column = lowestBit(columns), j = column + t % 2 * 2;
        columns = columns >> column >> 4 << column << 4;
        const float first = shared.weights[b][1][j][4 * side + g % 4], second = shared.weights[b][1][j + 1][4 * side + g % 4];
        Split products;
        products.set(0, above[0] * first, above[0] * second);
        products.set(1, above[2] * first, above[2] * second);
        products.set(2, below[0] * first, below[0] * second);
        products.set(3, below[2] * first, below[2] * second);
        const uint32_t places[2] = {static_cast<uint32_t>(minimum(q + j, all.q - 1) * words),
                                    static_cast<uint32_t>(minimum(q + j + 1, all.q - 1) * words)};
#pragma unroll
        for (int s = 0; s < kGroups; ++s) {
          Words<bf16> bins[4];
          for (int k = 0; k < 4; ++k) bins[k] = (box + s * (kGroup / 8))[lines[k / 2] + places[k % 2]];
          addProducts(sums[s], products, bins);
        }
      }
    }
  }
  DEVICE void finish(bf16* dx, const Boxes& all, int image, int top, int left) const {
    for (int i = 0; i < 2; ++i) {
      const int row = top + 4 * half + laneIndex() / 16 + 2 * i, column = left + 4 * side + laneIndex() / 4 % 4;
      if (c < all.channels && row < all.rows && column < all.columns)
        for (int s = 0; s < kGroups; ++s)
          storeProducts(dx + ((static_cast<int64_t>(image) * all.rows + row) * all.columns + column) * all.channels + c + s * kGroup,
                        sums[s], i);
    }
  }
};

// A block takes a tile of a map and Gather::kChannels channels.
template <class T, class Gather>
__global__ void __launch_bounds__(kThreads, 2) roiAlignBackwardKernel(T* dx, const T* dy, Boxes all, Tiles tiles) {
  Gathering& shared = sharedMemory<Gathering>();
  const int perImage = tiles.across * tiles.down, warp = warpIndex();
  const int place = static_cast<int>(blockIdx.x) % perImage, chunk = static_cast<int>(blockIdx.x) / perImage % tiles.chunks,
            image = static_cast<int>(blockIdx.x) / perImage / tiles.chunks;
  const int top = place / tiles.across * kTile, left = place % tiles.across * kTile;
  Gather gather(dy, all.channels, chunk);
  for (int i = laneIndex(); i < 2 * kBehind * kTile; i += kWarp)
    shared.weights[warp][i / (kBehind * kTile)][kBlock + i / kTile % kBehind][i % kTile] = 0;
  for (int first = 0; first < all.count; first += kScan) {
    // Most boxes are of other images.
    unsigned own = 0, votes = 0;
    int mine = 0;
    const int r = first + warp * (kScan / kWarps) + laneIndex();
    for (int s = 0; s < kRounds; ++s)
      if (r + s * kWarp < all.count && all.image(r + s * kWarp) == image) own |= 1u << s;
    const bool any = ballot(own != 0) != 0;
#pragma unroll 1
    for (int s = 0; any && s < kRounds; ++s) {
      const unsigned found =
          ballot((own >> s & 1) && meets(all.axis(r + s * kWarp, true), top) && meets(all.axis(r + s * kWarp, false), left));
      if (laneIndex() == s) votes = found;
      mine += popCount(found);
    }
    if (laneIndex() == 0) shared.found[warp] = mine;
    __syncthreads();
    int at = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) at += shared.found[w];
      total += shared.found[w];
    }
#pragma unroll 1
    for (int s = 0; mine != 0 && s < kRounds; ++s) {
      const unsigned found = shuffle(votes, s);
      if (found >> laneIndex() & 1) shared.boxes[at + popCount(found & ((1u << laneIndex()) - 1))] = r + s * kWarp;
      at += popCount(found);
    }
    __syncthreads();
    for (int start = 0; start < total; start += kWarps)
      for (int p = 0; p < all.p; p += kBlock)
        for (int q = 0; q < all.q; q += kBlock) {
          if (start + warp < total) weighTile(shared.weights[warp], shared.masks[warp], all, shared.boxes[start + warp], top, left, p, q);
          __syncthreads();
#pragma unroll 1
          for (int b = 0; b < kWarps && start + b < total; ++b) gather.add(shared, b, all, shared.boxes[start + b], p, q);
          __syncthreads();
        }
  }
  gather.finish(dx, all, image, top, left);
}

}  // namespace

void roiAlignBackward(const Call& call) {
  using Names = args::roiAlignBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy);
  const Boxes all(call, Names{}, dx, dy);
  dispatchWidth(call, dx, [&](auto zero, auto width) {
    using T = decltype(zero);
    const auto take = [&](auto kernel, int64_t channels) {
      const Tiles tiles{static_cast<int>(ceilDiv(all.columns, kTile)), static_cast<int>(ceilDiv(all.rows, kTile)),
                        static_cast<int>(ceilDiv(all.channels, channels))};
      launch(call, kernel, Grid{tiles.count(all.images)}, kThreads, sizeof(Gathering), dx.data<T>(), dy.data<T>(), all, tiles);
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (all.channels % (kGroup * GatherProducts::kGroups) == 0)
        return take(&roiAlignBackwardKernel<T, GatherProducts>, GatherProducts::kChannels);
    using Gather = GatherVectors<T, width.value>;
    take(&roiAlignBackwardKernel<T, Gather>, Gather::kChannels);
  });
}

}  // namespace densecl::cuda

#include "hopper.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "../core/e4m3.h"
#include "block.h"
#include "tile.h"

namespace densecl::simt {
namespace {

constexpr unsigned kWarpgroup = 128;
constexpr int kLineBytes = 128;

// The place of a byte under the 128-byte swizzle: bits 4..6 of the address are xored with bits 7..9.
unsigned swizzled(unsigned offset) { return offset ^ ((offset >> 7 & 7) << 4); }

// Bytes side by side, zeros without `from`. The swizzle leaves 16 of them together.
void put(Block& block, unsigned offset, const unsigned char* from, int bytes) {
  while (bytes > 0) {
    const int part = std::min(bytes, 16 - static_cast<int>(offset % 16));
    unsigned char* const to = block.shared + swizzled(offset);
    if (from == nullptr)
      std::memset(to, 0, static_cast<size_t>(part));
    else if (part == 16)
      std::memcpy(to, from, 16);
    else
      std::memcpy(to, from, static_cast<size_t>(part));
    if (from != nullptr) from += part;
    offset += static_cast<unsigned>(part);
    bytes -= part;
  }
}

// The elements at..at + count of a line of `size`, whose element 0 is at `line`; zeros outside, or for all without `line`.
void putElements(Block& block, unsigned offset, const unsigned char* line, int64_t at, int64_t count, int64_t size) {
  const int64_t first = line == nullptr ? count : std::clamp<int64_t>(-at, 0, count), last = std::clamp<int64_t>(size - at, first, count);
  put(block, offset, nullptr, static_cast<int>(first) * 2);
  if (first < last) put(block, offset + static_cast<unsigned>(first) * 2, line + (at + first) * 2, static_cast<int>(last - first) * 2);
  put(block, offset + static_cast<unsigned>(last) * 2, nullptr, static_cast<int>(count - last) * 2);
}

void perform(Block& block, const BulkCopy& copy) {
  const HostTensorMap& map = copy.map;
  unsigned to = sharedOffset(copy.shared);
  const unsigned lineBytes = static_cast<unsigned>(map.box[0]) * 2;
  if (!map.im2col) {
    for (int z = 0; z < map.box[2]; ++z)
      for (int y = 0; y < map.box[1]; ++y, to += lineBytes) {
        const int64_t at[3] = {0, int64_t{copy.at[1]} + y, int64_t{copy.at[2]} + z};
        const unsigned char* line = map.address;
        for (int d = 1; d < map.rank && line != nullptr; ++d)
          line = at[d] >= 0 && at[d] < map.sizes[d] ? line + at[d] * map.strides[d - 1] : nullptr;
        putElements(block, to, line, copy.at[0], map.box[0], map.sizes[0]);
      }
    return;
  }
  int w = copy.at[1], h = copy.at[2], n = copy.at[3];
  for (int p = 0; p < map.box[1]; ++p, to += lineBytes) {
    const int64_t x = w + copy.offset[0], y = h + copy.offset[1];
    const bool inside = x >= 0 && x < map.sizes[1] && y >= 0 && y < map.sizes[2] && n >= 0 && n < map.sizes[3];
    const unsigned char* const line = inside ? map.address + x * map.strides[0] + y * map.strides[1] + n * map.strides[2] : nullptr;
    putElements(block, to, line, copy.at[0], map.box[0], map.sizes[0]);
    w += map.steps[0];
    if (w < map.sizes[1] + map.upper[0]) continue;
    w = map.lower[0];
    h += map.steps[1];
    if (h < map.sizes[2] + map.upper[1]) continue;
    h = map.lower[1];
    ++n;
  }
}

int bytesOf(const BulkCopy& copy) { return copy.map.box[0] * copy.map.box[1] * copy.map.box[2] * 2; }

HostTensorMap mapAt(const void* address) {
  HostTensorMap map;
  std::memcpy(&map, address, sizeof(map));
  return map;
}

void deliver(Block& block, const BulkCopy& copy) {
  perform(block, copy);
  if (faulty(Instruction::bulkCopy) || (copy.map.im2col && faulty(Instruction::im2col)))
    put(block, sharedOffset(copy.shared) + 2, nullptr, 2);
}

PhaseBarrier& barrierAt(Block& block, void* address) {
  const auto found = block.phaseBarriers.find(address);
  if (found == block.phaseBarriers.end()) block.fail("a barrier is used that was not initialised");
  return found->second;
}

// Completes the phase if everything that it waits for has been given.
void tryComplete(Block& block, PhaseBarrier& barrier) {
  if (barrier.missing > 0) return;
  int bytes = 0;
  for (const BulkCopy& copy : barrier.copies) bytes += bytesOf(copy);
  if (bytes > barrier.expected)
    block.fail("a barrier expects " + std::to_string(barrier.expected) + " bytes but copies of " + std::to_string(bytes) + " arrive at it");
  if (bytes < barrier.expected) return;
  for (const BulkCopy& copy : barrier.copies)
    if (!copy.performed) deliver(block, copy);
  barrier.copies.clear();
  barrier.expected = 0;
  barrier.missing = barrier.arrivals;
  ++barrier.phase;
}

void requirePlace(Block& block, const BulkCopy& copy) {
  const unsigned offset = sharedOffset(copy.shared);
  if (offset % 1024 != 0)
    block.fail("a bulk copy of shared memory at byte " + std::to_string(offset) +
               ", which is no multiple of 1024: the swizzle repeats by that");
}

void startCopy(BulkCopy copy, void* barrier) {
  Block& block = currentBlock();
  requirePlace(block, copy);
  // Into a place that is still read, a copy that comes late would not show.
  copy.performed = block.early();
  if (copy.performed) deliver(block, copy);
  barrierAt(block, barrier).copies.push_back(copy);
}

// A box of two dimensions; what lies outside of the tensor is left out.
void performStore(Block& block, BulkCopy& copy) {
  if (copy.performed) return;
  copy.performed = true;
  const HostTensorMap& map = copy.map;
  const unsigned base = sharedOffset(copy.shared);
  if (faulty(Instruction::bulkStore)) put(block, base + 2, nullptr, 2);
  for (int y = 0; y < map.box[1]; ++y)
    for (int x = 0; x < map.box[0]; ++x) {
      const int64_t column = int64_t{copy.at[0]} + x, row = int64_t{copy.at[1]} + y;
      if (column < 0 || column >= map.sizes[0] || row < 0 || row >= map.sizes[1]) continue;
      std::memcpy(const_cast<unsigned char*>(map.address) + row * map.strides[0] + column * 2,
                  block.shared + swizzled(base + static_cast<unsigned>(y * map.box[0] + x) * 2), 2);
    }
}

unsigned warpgroupOf(const Block& block) { return block.current->at.thread.x / kWarpgroup; }

// 16 bytes as values: eight of bf16, or as many of E4M3.
void unpack(float* to, const unsigned char* shared, unsigned offset, bool isE4m3) {
  const unsigned char* const from = shared + swizzled(offset);
  if (isE4m3) {
    for (int i = 0; i < 16; ++i) {
      e4m3 value;
      value.bits = from[i];
      to[i] = static_cast<float>(value);
    }
    return;
  }
  uint16_t halves[8];
  std::memcpy(halves, from, sizeof(halves));
  for (int i = 0; i < 8; ++i) to[i] = lowHalf(halves[i]);
}

// Calls put(row, k, value) for each element of an operand of `rows` rows: lines of 64 elements along the depth, or along the rows.
template <class Put>
void eachElement(const unsigned char* shared, uint64_t descriptor, bool alongRows, bool e4m3, unsigned rows, Put put) {
  const unsigned start = static_cast<unsigned>(descriptor & 0x3fff) << 4, near = static_cast<unsigned>(descriptor >> 16 & 0x3fff) << 4,
                 far = static_cast<unsigned>(descriptor >> 32 & 0x3fff) << 4;
  float values[16];
  if (alongRows && !e4m3) {
    for (unsigned k = 0; k < 16; ++k)
      for (unsigned row = 0; row < rows; row += 8) {
        unpack(values, shared, start + row / 64 * near + row % 64 * 2 + k / 8 * far + k % 8 * kLineBytes, false);
        for (unsigned i = 0; i < 8; ++i) put(row + i, k, values[i]);
      }
    return;
  }
  const unsigned together = e4m3 ? 16 : 8;
  for (unsigned row = 0; row < rows; ++row)
    for (unsigned part = 0; part < 2; ++part) {
      unpack(values, shared, start + row / 8 * far + row % 8 * kLineBytes + part * 16, e4m3);
      for (unsigned i = 0; i < together; ++i) put(row, part * together + i, values[i]);
    }
}

// A committed product of all lanes of a warpgroup.
void multiply(Block& block, const std::vector<const Product*>& lanes) {
  const Product& first = *lanes[0];
  const bool inRegisters = first.registers != nullptr, wrong = faulty(first.e4m3    ? Instruction::wgmmaE4m3
                                                                      : inRegisters ? Instruction::wgmmaRegisters
                                                                                    : Instruction::wgmma);
  for (const Product* lane : lanes)
    if (lane->a != first.a || lane->b != first.b || lane->n != first.n || lane->e4m3 != first.e4m3 ||
        (lane->registers != nullptr) != inRegisters)
      block.fail("the lanes of a warpgroup give different operands to wgmma");
  if ((!inRegisters && first.a >> 62 != 1) || first.b >> 62 != 1) block.fail("a matrix descriptor without the 128-byte swizzle");
  const size_t depth = first.e4m3 ? 32 : 16, eights = static_cast<size_t>(first.n) / 8;
  std::vector<float> a(64 * depth), b(eights * depth * 8);  // b by 8 columns
  if (inRegisters) {
    // Pairs of a lane: rows g and g + 8, depths 2t and 2t + 8.
    for (size_t t = 0; t < kWarpgroup; ++t)
      for (size_t i = 0; i < 4; ++i) {
        const uint32_t pair = lanes[t]->registers[i];
        float* const to = &a[(t / 32 * 16 + t % 32 / 4 + i % 2 * 8) * depth + t % 4 * 2 + i / 2 * 8];
        to[0] = lowHalf(pair);
        to[1] = highHalf(pair);
      }
  } else {
    eachElement(block.shared, first.a, first.rowsA, first.e4m3, 64,
                [&](unsigned row, unsigned k, float value) { a[row * depth + k] = value; });
  }
  eachElement(block.shared, first.b, first.rowsB, first.e4m3, static_cast<unsigned>(first.n),
              [&](unsigned n, unsigned k, float value) { b[(n / 8 * depth + k) * 8 + n % 8] = value; });
  float* c[kWarpgroup];
  for (size_t t = 0; t < kWarpgroup; ++t) c[t] = lanes[t]->c;
  for (size_t warp = 0; warp < 4; ++warp)
    for (size_t j = 0; j < eights; ++j)
      addProduct(c + warp * kWarp, j * 4, &a[warp * 16 * depth], &b[j * depth * 8], depth, wrong && warp == 1 && j == 1);
}

}  // namespace

unsigned sharedOffset(const void* pointer) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(pointer) - currentBlock().shared);
}

void mbarrierInit(void* barrier, int arrivals) {
  PhaseBarrier fresh;
  fresh.arrivals = fresh.missing = arrivals;
  currentBlock().phaseBarriers[barrier] = fresh;
}

void mbarrierArrive(void* address, int bytes) {
  Block& block = currentBlock();
  PhaseBarrier& barrier = barrierAt(block, address);
  tryComplete(block, barrier);
  if (barrier.missing == 0) block.fail("more threads arrive at a barrier than it was made for");
  --barrier.missing;
  barrier.expected += bytes;
}

void mbarrierWaitParity(void* address, int parity) {
  Block& block = currentBlock();
  PhaseBarrier& barrier = barrierAt(block, address);
  if (faulty(Instruction::mbarrier)) return;
  block.waitUntil([&] {
    if ((barrier.phase & 1) == static_cast<unsigned>(parity)) tryComplete(block, barrier);
    return (barrier.phase & 1) != static_cast<unsigned>(parity);
  });
}

void namedBarrier(int number, int threads) {
  Block& block = currentBlock();
  NamedBarrier& barrier = block.namedBarriers[number];
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  block.waitUntil([&, generation] { return barrier.generation != generation; });
}

void tmaLoad(void* to, const void* map, void* barrier, Box at) {
  startCopy({to, mapAt(map), {at.x, at.y, at.z, 0}, {0, 0}, false}, barrier);
}
void tmaLoadIm2col(void* to, const void* map, void* barrier, int channel, int w, int h, int n, int offsetW, int offsetH) {
  // The instruction keeps 8 bits of each.
  if (offsetW < 0 || offsetW > 255 || offsetH < 0 || offsetH > 255)
    currentBlock().fail("offsets (" + std::to_string(offsetW) + "," + std::to_string(offsetH) +
                        ") of an im2col copy, which holds 0 to 255");
  startCopy({to, mapAt(map), {channel, w, h, n}, {offsetW, offsetH}, false}, barrier);
}

void fenceProxyAsync() {
  Block& block = currentBlock();
  ++block.fences[warpgroupOf(block)];
}
void tmaStore(const void* from, const void* map, int x, int y) {
  Block& block = currentBlock();
  BulkCopy copy{const_cast<void*>(from), mapAt(map), {x, y, 0, 0}, {0, 0}, false};
  requirePlace(block, copy);
  const unsigned fences = block.fences[warpgroupOf(block)];
  if (fences < kWarpgroup)
    block.fail("a bulk store of what " + std::to_string(kWarpgroup - fences) + " threads of its warpgroup wrote without a fence");
  if (block.early()) performStore(block, copy);
  block.current->stores.push_back(copy);
}
void bulkCommitGroup() {
  Block& block = currentBlock();
  block.current->committedStores = block.current->stores.size();
  block.fences[warpgroupOf(block)] = 0;
}
void bulkWait() {
  Block& block = currentBlock();
  auto& stores = block.current->stores;
  const auto end = stores.begin() + static_cast<std::ptrdiff_t>(block.current->committedStores);
  for (auto store = stores.begin(); store != end; ++store) performStore(block, *store);
  stores.erase(stores.begin(), end);
  block.current->committedStores = 0;
}

void wgmma(const Product& product) { currentBlock().current->openProducts.push_back(product); }

void wgmmaCommitGroup() {
  Thread& self = *currentBlock().current;
  self.products.push_back(std::move(self.openProducts));
  self.openProducts.clear();
}

void wgmmaWaitGroup(int groupsInFlight) {
  Block& block = currentBlock();
  auto& groups = block.current->products;
  if (groups.size() <= static_cast<size_t>(groupsInFlight)) return;
  const size_t finished = groups.size() - static_cast<size_t>(groupsInFlight);
  block.meetWarpgroup(kWarpgroup, [&](const std::vector<Thread*>& threads) {
    std::vector<const Product*> lanes(kWarpgroup);
    for (size_t g = 0; g < finished; ++g)
      for (size_t i = 0; i < threads[0]->products[g].size(); ++i) {
        for (unsigned t = 0; t < kWarpgroup; ++t) {
          if (threads[t]->products.size() < finished || threads[t]->products[g].size() <= i)
            block.fail("the lanes of a warpgroup have given different products");
          lanes[t] = &threads[t]->products[g][i];
        }
        multiply(block, lanes);
      }
  });
  groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(finished));
}

}  // namespace densecl::simt

#include "hopper.h"

#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "../core/e4m3.h"
#include "block.h"

namespace densecl::simt {
namespace {

constexpr unsigned kWarpgroup = 128;
constexpr int kLineBytes = 128;

// The place of a byte under the 128-byte swizzle: bits 4..6 of the address are xored with bits 7..9.
unsigned swizzled(unsigned offset) { return offset ^ ((offset >> 7 & 7) << 4); }

void putElement(Block& block, unsigned offset, const unsigned char* from) {
  unsigned char* to = block.shared + swizzled(offset);
  if (from == nullptr)
    std::memset(to, 0, 2);
  else
    std::memcpy(to, from, 2);
}

void perform(Block& block, const BulkCopy& copy) {
  const HostTensorMap& map = copy.map;
  const unsigned base = sharedOffset(copy.to);
  if (!map.im2col) {
    for (int z = 0; z < map.box[2]; ++z)
      for (int y = 0; y < map.box[1]; ++y)
        for (int x = 0; x < map.box[0]; ++x) {
          const int64_t at[3] = {int64_t{copy.at[0]} + x, int64_t{copy.at[1]} + y, int64_t{copy.at[2]} + z};
          bool inside = true;
          const unsigned char* from = map.address + at[0] * 2;
          for (int d = 0; d < map.rank; ++d) {
            inside = inside && at[d] >= 0 && at[d] < map.sizes[d];
            if (d > 0) from += at[d] * map.strides[d - 1];
          }
          putElement(block, base + static_cast<unsigned>((z * map.box[1] + y) * map.box[0] + x) * 2, inside ? from : nullptr);
        }
    return;
  }
  int w = copy.at[1], h = copy.at[2], n = copy.at[3];
  for (int p = 0; p < map.box[1]; ++p) {
    const int64_t x = w + copy.offset[0], y = h + copy.offset[1];
    const bool inside = x >= 0 && x < map.sizes[1] && y >= 0 && y < map.sizes[2] && n >= 0 && n < map.sizes[3];
    for (int c = 0; c < map.box[0]; ++c) {
      const bool channel = copy.at[0] + c < map.sizes[0];
      const unsigned char* from =
          map.address + (int64_t{copy.at[0]} + c) * 2 + x * map.strides[0] + y * map.strides[1] + n * map.strides[2];
      putElement(block, base + static_cast<unsigned>(p * map.box[0] + c) * 2, inside && channel ? from : nullptr);
    }
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
    putElement(block, sharedOffset(copy.to) + 2, nullptr);
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

void startCopy(BulkCopy copy, void* barrier) {
  Block& block = currentBlock();
  if (sharedOffset(copy.to) % 1024 != 0)
    block.fail("a bulk copy to shared memory at byte " + std::to_string(sharedOffset(copy.to)) +
               ", which is no multiple of 1024: the swizzle repeats by that");
  // Into a place that is still read, a copy that comes late would not show.
  copy.performed = block.early();
  if (copy.performed) deliver(block, copy);
  barrierAt(block, barrier).copies.push_back(copy);
}

float upperHalf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float element(const unsigned char* shared, unsigned offset) {
  uint32_t bits = 0;
  std::memcpy(reinterpret_cast<unsigned char*>(&bits) + 2, shared + swizzled(offset), 2);
  return upperHalf(bits);
}

float eighth(const unsigned char* shared, unsigned offset) {
  e4m3 value;
  value.bits = shared[swizzled(offset)];
  return static_cast<float>(value);
}

// Element (row, k) of an operand: lines of 64 elements along the depth, or along the rows.
float operand(const unsigned char* shared, uint64_t descriptor, bool alongRows, bool e4m3, int row, int k) {
  const unsigned start = static_cast<unsigned>(descriptor & 0x3fff) << 4, near = static_cast<unsigned>(descriptor >> 16 & 0x3fff) << 4,
                 far = static_cast<unsigned>(descriptor >> 32 & 0x3fff) << 4;
  const unsigned r = static_cast<unsigned>(row), d = static_cast<unsigned>(k);
  if (e4m3) return eighth(shared, start + r / 8 * far + r % 8 * kLineBytes + d);
  if (!alongRows) return element(shared, start + r / 8 * far + r % 8 * kLineBytes + d * 2);
  return element(shared, start + r / 64 * near + r % 64 * 2 + d / 8 * far + d % 8 * kLineBytes);
}

using Eight = float __attribute__((vector_size(32)));

// A row of a product, from copies of the operands, which AddressSanitizer need not watch.
__attribute__((no_sanitize("address"))) void multiplyRow(Eight* sums, const float* a, const Eight* b, size_t depth, size_t eights) {
  for (size_t j = 0; j < eights; ++j) {
    Eight sum = {};
    for (size_t k = 0; k < depth; ++k) sum += a[k] * b[k * eights + j];
    sums[j] = sum;
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
  std::vector<float> a(64 * depth);
  std::vector<Eight> b(depth * eights), sums(eights);
  for (int k = 0; k < static_cast<int>(depth); ++k) {
    for (int m = 0; m < 64; ++m) {
      float& to = a[static_cast<size_t>(m) * depth + k];
      if (!inRegisters) {
        to = operand(block.shared, first.a, first.rowsA, first.e4m3, m, k);
        continue;
      }
      // Pairs of a lane: rows g and g + 8, depths 2t and 2t + 8.
      const Product& owner = *lanes[static_cast<size_t>(m / 16 * 32 + m % 8 * 4 + k % 8 / 2)];
      const uint32_t pair = owner.registers[m % 16 / 8 + k / 8 * 2];
      to = upperHalf(k % 2 == 1 ? pair & 0xffff0000u : pair << 16);
    }
    for (int n = 0; n < first.n; ++n)
      b[static_cast<size_t>(k) * eights + n / 8][n % 8] = operand(block.shared, first.b, first.rowsB, first.e4m3, n, k);
  }
  for (size_t row = 0; row < 64; ++row) {
    multiplyRow(sums.data(), &a[row * depth], b.data(), depth, eights);
    if (wrong && row == 25) sums[1][2] = 0;
    // A lane has pairs of columns of two rows.
    const size_t firstLane = row / 16 * 32 + row % 8 * 4, half = row % 16 / 8 * 2;
    for (size_t pair = 0; pair < 4; ++pair) {
      float* const c = lanes[firstLane + pair]->c + half;
      for (size_t j = 0; j < eights; ++j)
        for (size_t e = 0; e < 2; ++e) c[j * 4 + e] += sums[j][pair * 2 + e];
    }
  }
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

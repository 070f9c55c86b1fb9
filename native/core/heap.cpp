#include "heap.h"

#include <iterator>

#include "device.h"

namespace densecl {

void* Heap::take(size_t size) {
  const auto fits = free_.lower_bound({size, nullptr});
  if (fits == free_.end() || (!device_.divisible() && fits->first != size)) return nullptr;
  return occupy(blocks_.find(fits->second), size);
}

void* Heap::takeFromGrown(size_t size) {
  if (newest_ == nullptr) return nullptr;
  Block& segment = blocks_.find(newest_)->second;
  char* const end = newest_ + segment.segment;
  const auto last = std::prev(blocks_.lower_bound(end));
  const size_t more = size - (last->second.free ? last->second.size : 0);
  if (!device_.growRaw(newest_, segment.segment + more)) return nullptr;
  segment.segment += more;
  reserved_ += more;
  free_.emplace(more, end);
  const auto grown = blocks_.emplace(end, Block{more, 0, true}).first;
  if (!last->second.free) return occupy(grown, size);
  mergeNext(last);
  return occupy(last, size);
}

void* Heap::takeFromNew(size_t size, size_t segment) {
  auto* memory = static_cast<char*>(device_.allocateRaw(segment));
  if (memory == nullptr) return nullptr;
  newest_ = memory;
  reserved_ += segment;
  free_.emplace(segment, memory);
  return occupy(blocks_.emplace(memory, Block{segment, segment, true}).first, size);
}

void* Heap::occupy(Blocks::iterator block, size_t size) {
  auto& [begin, taken] = *block;
  free_.erase({taken.size, begin});
  if (taken.size > size) {
    blocks_.emplace_hint(std::next(block), begin + size, Block{taken.size - size, 0, true, taken.empty});
    free_.emplace(taken.size - size, begin + size);
  }
  if (taken.empty) reserved_ += size;
  taken.size = size;
  taken.free = taken.empty = false;
  return begin;
}

void Heap::giveBack(void* memory) {
  const auto block = blocks_.find(static_cast<char*>(memory));
  block->second.free = true;
  free_.emplace(block->second.size, block->first);
  mergeNext(block);
  if (block->second.segment == 0) mergeNext(std::prev(block));
}

void Heap::mergeNext(Blocks::iterator block) {
  const auto next = std::next(block);
  auto& [begin, grown] = *block;
  if (next == blocks_.end() || next->second.segment != 0 || !grown.free || !next->second.free) return;
  free_.erase({grown.size, begin});
  free_.erase({next->second.size, next->first});
  // Which part of it takes memory is not kept.
  if (grown.empty != next->second.empty) reserved_ += grown.empty ? grown.size : next->second.size;
  grown.empty = grown.empty && next->second.empty;
  grown.size += next->second.size;
  free_.emplace(grown.size, begin);
  blocks_.erase(next);
}

void Heap::trim() {
  constexpr size_t large = size_t{1} << 20;
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    auto& [begin, unused] = *block;
    const bool whole = unused.free && unused.segment == unused.size;
    if (unused.free && !unused.empty && (whole || (unused.size >= large && device_.discardRaw(begin, unused.size)))) {
      unused.empty = true;
      reserved_ -= unused.size;
    }
    if (!whole) {
      ++block;
      continue;
    }
    device_.releaseRaw(begin, unused.segment);
    if (begin == newest_) newest_ = nullptr;
    free_.erase({unused.size, begin});
    block = blocks_.erase(block);
  }
}

}  // namespace densecl

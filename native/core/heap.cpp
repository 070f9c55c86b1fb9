#include "heap.h"

#include <iterator>

#include "device.h"

namespace densecl {

void* Heap::take(size_t size) {
  const auto fits = free_.lower_bound({size, nullptr});
  if (fits == free_.end() || (!device_.divisible() && fits->first != size)) return nullptr;
  return occupy(blocks_.find(fits->second), size);
}

void* Heap::takeFromNew(size_t size, size_t segment) {
  auto* memory = static_cast<char*>(device_.allocateRaw(segment));
  if (memory == nullptr) return nullptr;
  reserved_ += segment;
  free_.emplace(segment, memory);
  return occupy(blocks_.emplace(memory, Block{segment, segment, true}).first, size);
}

void* Heap::occupy(Blocks::iterator block, size_t size) {
  auto& [begin, taken] = *block;
  free_.erase({taken.size, begin});
  if (taken.size > size) {
    blocks_.emplace_hint(std::next(block), begin + size, Block{taken.size - size, 0, true});
    free_.emplace(taken.size - size, begin + size);
  }
  taken.size = size;
  taken.free = false;
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
  grown.size += next->second.size;
  free_.emplace(grown.size, begin);
  blocks_.erase(next);
}

void Heap::trim() {
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    const auto& [begin, unused] = *block;
    if (!unused.free || unused.segment != unused.size) {
      ++block;
      continue;
    }
    device_.releaseRaw(begin, unused.segment);
    reserved_ -= unused.segment;
    free_.erase({unused.size, begin});
    block = blocks_.erase(block);
  }
}

}  // namespace densecl

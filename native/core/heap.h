// Blocks of a device's memory, cut from segments that the device gives: the tightest free block that is large enough is taken, what is
// left of it stays free, and free neighbours are merged. Where no free block is large enough, the newest segment grows by what its last
// block lacks, if the device can have it grow (Device::growRaw): all blocks are then of one segment, and work whose sizes change from step
// to step needs hardly more than what is in use at one time. Where blocks cannot be cut (Device::divisible), a segment is a block, and is
// used again for its own size alone.
#pragma once
#include <cstddef>
#include <map>
#include <set>
#include <utility>

namespace densecl {

class Device;

class Heap {
 public:
  explicit Heap(Device& device) : device_(device) {}

  // A free block of `size` bytes; null where no free block is large enough.
  void* take(size_t size);
  // A block of `size` bytes at the end of the newest segment, where no free block is large enough; null where it does not grow.
  void* takeFromGrown(size_t size);
  // A block of `size` bytes out of a new segment of `segment` bytes, which is no less; null where the device has none.
  void* takeFromNew(size_t size, size_t segment);
  void giveBack(void* block);
  // Gives the device every segment that no block is taken from, and the memory of large free blocks of others where it takes that.
  void trim();
  size_t reserved() const { return reserved_; }  // bytes of all segments, but of what takes no memory

 private:
  struct Block {
    size_t size;
    size_t segment;  // bytes of the segment that begins here; 0 elsewhere
    bool free;
    bool empty = false;  // takes no memory: the device was given it
  };
  using Blocks = std::map<char*, Block>;

  void* occupy(Blocks::iterator block, size_t size);
  // The block after it becomes part of it, if both are free and of one segment.
  void mergeNext(Blocks::iterator block);

  Device& device_;
  Blocks blocks_;                            // by address
  std::set<std::pair<size_t, char*>> free_;  // by size, then address
  char* newest_ = nullptr;                   // segment
  size_t reserved_ = 0;
};

}  // namespace densecl

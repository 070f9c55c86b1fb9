// The memory of a step that is recorded once and replayed: a trace of one run gives the lifetime of every block, each block gets
// its place in one arena, and the run that is recorded must ask for the same blocks in the same order.
#pragma once
#include <cstddef>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

namespace densecl {

class Plan {
 public:
  // The run that is traced.
  void acquired(void* block, size_t capacity);
  void released(void* block);
  // Ends the trace. Blocks go one after another to the tightest gap between those that live at the same time (Y. Pisarchyk, J. Lee,
  // "Efficient memory management for deep neural net inference", arXiv:2001.03288), in the best of several orders.
  void place();

  // The run that is recorded: the place of the next block. Throws GRAPH when it is not the block of the trace.
  void* serve(void* arena, size_t capacity);
  void returned(void* block);
  // Of either run: which of its blocks, in their order, this one is that is in use.
  std::optional<size_t> find(const void* block) const;
  // What no block has at this moment of it: offset and bytes, by offset.
  std::vector<std::pair<size_t, size_t>> gaps() const;
  // The two runs have done the same; throws GRAPH when not.
  void finish();

  size_t bytes() const { return bytes_; }  // of the arena
  size_t live() const { return live_; }    // the most bytes in use at one time: no arena is smaller
  size_t total() const { return total_; }  // of all blocks, as if none were used again

 private:
  struct Lifetime {
    size_t capacity, begin, end, offset;
  };
  struct Event {
    bool acquire;
    size_t lifetime;
  };
  bool matches(bool acquire, size_t lifetime);
  // The bytes that all take where each has chosen after those before it in `order`.
  size_t placeInOrder(const std::vector<size_t>& order);

  std::vector<Lifetime> lifetimes_;
  std::vector<Event> events_;
  std::unordered_map<const void*, size_t> open_;  // lifetimes of blocks in use
  size_t bytes_ = 0, live_ = 0, total_ = 0;
  size_t at_ = 0, served_ = 0;  // of the recorded run
  bool differs_ = false;
};

}  // namespace densecl

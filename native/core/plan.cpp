#include "plan.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "error.h"

namespace densecl {

void Plan::acquired(void* block, size_t capacity) {
  open_[block] = lifetimes_.size();
  events_.push_back({true, lifetimes_.size()});
  lifetimes_.push_back({capacity, events_.size(), std::numeric_limits<size_t>::max(), 0});
}

void Plan::released(void* block) {
  const auto found = open_.find(block);
  if (found == open_.end()) return;  // older than the trace
  events_.push_back({false, found->second});
  lifetimes_[found->second].end = events_.size();
  open_.erase(found);
}

void Plan::place() {
  open_.clear();
  size_t now = 0;
  for (const Event& event : events_) {
    const size_t capacity = lifetimes_[event.lifetime].capacity;
    now = event.acquire ? now + capacity : now - capacity;
    live_ = std::max(live_, now);
    if (event.acquire) total_ += capacity;
  }

  // What came to lie on top found no gap: it chooses before the others from then on.
  constexpr int attempts = 20;
  std::vector<size_t> order(lifetimes_.size()), best;
  const auto area = [](const Lifetime& of) { return static_cast<double>(of.capacity) * static_cast<double>(of.end - of.begin); };
  const auto duration = [](const Lifetime& of) { return static_cast<double>(of.end - of.begin); };
  const auto size = [](const Lifetime& of) { return static_cast<double>(of.capacity); };
  for (const auto rank : {+area, +duration, +size}) {
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rank(lifetimes_[a]) > rank(lifetimes_[b]); });
    for (int attempt = 0; attempt < attempts && (best.empty() || bytes_ > live_); ++attempt) {
      const size_t bytes = placeInOrder(order);
      if (best.empty() || bytes < bytes_) {
        bytes_ = bytes;
        best = order;
      }
      std::stable_partition(order.begin(), order.end(),
                            [&](size_t which) { return lifetimes_[which].offset + lifetimes_[which].capacity == bytes; });
    }
  }
  placeInOrder(best);
}

size_t Plan::placeInOrder(const std::vector<size_t>& order) {
  size_t bytes = 0;
  std::vector<size_t> placed;  // by offset
  for (size_t which : order) {
    Lifetime& mine = lifetimes_[which];
    size_t end = 0, best = std::numeric_limits<size_t>::max(), tightest = best;
    for (size_t other : placed) {
      const Lifetime& taken = lifetimes_[other];
      if (taken.end <= mine.begin || mine.end <= taken.begin) continue;
      if (taken.offset >= end + mine.capacity && taken.offset - end < tightest) {
        tightest = taken.offset - end;
        best = end;
      }
      end = std::max(end, taken.offset + taken.capacity);
    }
    mine.offset = best == std::numeric_limits<size_t>::max() ? end : best;
    bytes = std::max(bytes, mine.offset + mine.capacity);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), which,
                                   [&](size_t a, size_t b) { return lifetimes_[a].offset < lifetimes_[b].offset; }),
                  which);
  }
  return bytes;
}

bool Plan::matches(bool acquire, size_t lifetime) {
  const bool same = at_ < events_.size() && events_[at_].acquire == acquire && events_[at_].lifetime == lifetime;
  ++at_;
  differs_ = differs_ || !same;
  return same;
}

void* Plan::serve(void* arena, size_t capacity) {
  const size_t lifetime = served_++;
  if (!matches(true, lifetime) || lifetimes_[lifetime].capacity != capacity) {
    differs_ = true;
    throw Error("GRAPH", "graph: the recorded run asks for " + std::to_string(capacity) + " bytes as block " + std::to_string(lifetime) +
                             ", where the run before it " +
                             (lifetime < lifetimes_.size() ? "took " + std::to_string(lifetimes_[lifetime].capacity) + " bytes"
                                                           : "had no more blocks") +
                             ": both must do the same");
  }
  void* block = static_cast<char*>(arena) + lifetimes_[lifetime].offset;
  open_[block] = lifetime;
  return block;
}

void Plan::returned(void* block) {
  const auto found = open_.find(block);
  matches(false, found == open_.end() ? lifetimes_.size() : found->second);
  if (found != open_.end()) open_.erase(found);
}

std::optional<size_t> Plan::find(const void* block) const {
  const auto found = open_.find(block);
  return found == open_.end() ? std::nullopt : std::optional<size_t>(found->second);
}

std::vector<std::pair<size_t, size_t>> Plan::gaps() const {
  std::vector<std::pair<size_t, size_t>> taken, free;
  for (const auto& [block, lifetime] : open_) taken.push_back({lifetimes_[lifetime].offset, lifetimes_[lifetime].capacity});
  std::sort(taken.begin(), taken.end());
  taken.push_back({bytes_, 0});
  size_t end = 0;
  for (const auto& [offset, capacity] : taken) {
    if (offset > end) free.push_back({end, offset - end});
    end = offset + capacity;
  }
  return free;
}

void Plan::finish() {
  if (differs_ || at_ != events_.size())
    throw Error("GRAPH", "graph: the recorded run freed its memory in another order than the run before it: both must do the same");
}

}  // namespace densecl

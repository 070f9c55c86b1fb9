#include "scratch.h"

#include <algorithm>
#include <iterator>

#include "device.h"

namespace densecl {
namespace {

thread_local std::vector<Gap> lent;  // by address

// The tightest gap that is large enough gives its beginning; null where none is.
void* borrow(size_t size) {
  auto tightest = lent.end();
  for (auto gap = lent.begin(); gap != lent.end(); ++gap)
    if (gap->bytes >= size && (tightest == lent.end() || gap->bytes < tightest->bytes)) tightest = gap;
  if (tightest == lent.end()) return nullptr;
  char* block = tightest->begin;
  *tightest = {block + size, tightest->bytes - size};
  return block;
}

void giveBack(void* block, size_t size) {
  Gap back{static_cast<char*>(block), size};
  auto next = std::find_if(lent.begin(), lent.end(), [&](const Gap& gap) { return gap.begin >= back.begin + size; });
  if (next != lent.end() && back.begin + back.bytes == next->begin) {
    back.bytes += next->bytes;
    next = lent.erase(next);
  }
  if (next != lent.begin() && std::prev(next)->begin + std::prev(next)->bytes == back.begin)
    std::prev(next)->bytes += back.bytes;
  else
    lent.insert(next, back);
}

}  // namespace

Loan::Loan(const std::vector<Gap>& gaps) { lent = gaps; }
Loan::~Loan() { lent.clear(); }

ScratchBlock::ScratchBlock(size_t bytes, Life life)
    : bytes_(bytes), block_(life == Life::op ? borrow(Allocator::capacity(bytes)) : nullptr), lent_(block_ != nullptr) {
  if (!lent_) block_ = cpuDevice().allocator.allocate(bytes);
}
ScratchBlock::~ScratchBlock() {
  if (lent_)
    giveBack(block_, Allocator::capacity(bytes_));
  else
    cpuDevice().allocator.release(block_, bytes_);
}

}  // namespace densecl

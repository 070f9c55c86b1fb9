// Greedy non-maximum suppression: in the order of scores (topK.h), a box is kept unless a kept box of its group overlaps it by more than
// the threshold. Groups are suppressed one by one, on their own coordinates; a box of a negative group is not there.
#include <map>
#include <numeric>

#include "../core/parallel.h"
#include "boxes.h"
#include "ops.h"
#include "topK.h"

namespace densecl::cpu {
namespace {

// suppressed[j] |= box overlaps box j by more than the threshold
template <class T>
struct Suppression {
  int64_t* suppressed;
  const BoxColumns* all;
  BoxRow box;
  double threshold;
  int64_t begin, end;
};
template <class T>
INLINE void suppressLoop(const Suppression<T>& job) {
  const double *x1 = job.all->x1.data(), *y1 = job.all->y1.data(), *x2 = job.all->x2.data(), *y2 = job.all->y2.data(),
               *area = job.all->area.data();
  const BoxRow box = job.box;
  const double threshold = job.threshold;
  int64_t* __restrict suppressed = job.suppressed;
  for (int64_t j = job.begin; j < job.end; ++j)
    suppressed[j] |= overlap(box, x1[j], y1[j], x2[j], y2[j], area[j]) > threshold ? int64_t{1} : int64_t{0};
}
SIMD_LOOP(suppress, Suppression)

// Of a group's boxes, which `members` names in the order of scores, those that are kept, at most `most`. A block of boxes is decided, and
// then suppresses what comes after it: that is what threads share.
template <class T>
std::vector<int32_t> keep(const T* boxes, const std::vector<int32_t>& members, double threshold, int64_t most, bool parallel) {
  constexpr int64_t kBlock = 256, kGrain = 1024;
  const auto n = static_cast<int64_t>(members.size());
  const BoxColumns all(boxes, n, [&](int64_t i) { return members[i]; });
  std::vector<int64_t> suppressed(static_cast<size_t>(n));
  std::vector<int32_t> kept;
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t last = std::min(n, first + kBlock);
    std::vector<int64_t> here;
    for (int64_t i = first; i < last; ++i) {
      if (suppressed[i] != 0) continue;
      kept.push_back(members[i]);
      if (static_cast<int64_t>(kept.size()) == most) return kept;
      here.push_back(i);
      suppress(Suppression<T>{suppressed.data(), &all, BoxRow(all, i), threshold, i + 1, last});
    }
    const auto later = [&](int64_t begin, int64_t end) {
      for (const int64_t i : here) suppress(Suppression<T>{suppressed.data(), &all, BoxRow(all, i), threshold, last + begin, last + end});
    };
    if (parallel)
      parallelRange(n - last, kGrain, later);
    else
      later(0, n - last);
  }
  return kept;
}

}  // namespace

// index: the kept boxes in the order of scores, over all groups, then -1; count: how many they are.
void nms(const Call& call) {
  using Names = args::nms;
  const Tensor &index = call.tensor(Names::index), &count = call.tensor(Names::count), &boxes = call.tensor(Names::boxes),
               &scores = call.tensor(Names::scores), *group = call.optional(Names::group);
  const int64_t batch = boxes.dim(0), n = boxes.dim(1), most = index.dim(1);
  const double threshold = call.number(Names::threshold);
  REQUIRE(n < (int64_t{1} << 31), "SHAPE", "nms: expected fewer than 2^31 boxes but received " + describe(boxes));
  if (most == 0) return void(std::fill_n(count.data<int32_t>(), batch, 0));
  dispatchFloat(call, boxes.dtype, [&](auto zero) {
    using T = decltype(zero);
    struct Task {
      int64_t image;
      std::vector<int32_t> members, kept;
    };
    std::vector<Task> tasks;
    std::vector<int32_t> place(static_cast<size_t>(batch * n));  // of a box in the order of its image
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<int32_t> order(static_cast<size_t>(n));
      cpu::order(order.data(), scores.data<T>() + b * n, n, n);
      std::map<int32_t, size_t> groups;
      for (int64_t i = 0; i < n; ++i) {
        place[b * n + order[i]] = static_cast<int32_t>(i);
        const int32_t own = group == nullptr ? 0 : group->data<int32_t>()[b * n + order[i]];
        if (own < 0) continue;
        const auto [at, added] = groups.emplace(own, tasks.size());
        if (added) tasks.push_back({b, {}, {}});
        tasks[at->second].members.push_back(order[i]);
      }
    }
    const auto run = [&](Task& task, bool parallel) {
      task.kept = keep(boxes.data<T>() + task.image * n * 4, task.members, threshold, most, parallel);
    };
    if (tasks.size() == 1)
      run(tasks[0], true);
    else
      parallelFor(static_cast<int64_t>(tasks.size()), [&](int64_t t) { run(tasks[t], false); });
    std::vector<std::vector<int32_t>> places(static_cast<size_t>(batch));
    for (const Task& task : tasks)
      for (const int32_t i : task.kept) places[task.image].push_back(place[task.image * n + i]);
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<int32_t>& kept = places[b];
      std::sort(kept.begin(), kept.end());
      std::vector<int32_t> order(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) order[place[b * n + i]] = static_cast<int32_t>(i);
      const int64_t found = std::min<int64_t>(most, static_cast<int64_t>(kept.size()));
      for (int64_t i = 0; i < most; ++i) index.data<int32_t>()[b * most + i] = i < found ? order[kept[i]] : -1;
      count.data<int32_t>()[b] = static_cast<int32_t>(found);
    }
  });
}

}  // namespace densecl::cpu

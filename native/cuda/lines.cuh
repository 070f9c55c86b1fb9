// Sums over lines of partial results, and what is made of them: a group's lines are [perGroup, planes, channels], and those of a
// convolution's epilogue are many thousand. They are added by blocks of kColumns channels and up to kLines lines, each thread with loads of
// eight lines on their way. Where that would leave a thread more than kSerial lines, `parts` blocks share those of a group, and the last of
// them to arrive adds their sums and finishes: one launch either way. The order of additions is fixed.
#pragma once
#include <algorithm>

#include "kernel/vector.cuh"
#include "runtime.h"

namespace densecl::cuda {

constexpr int kColumns = 32, kLines = 32, kSerial = 4;

// What of a line is added: kSums planes as they are.
template <int kCount>
struct Planes {
  static constexpr int kSums = kCount;
  const float* partial;
  int64_t perGroup;
  int channels;
  DEVICE void start(int, int) {}
  DEVICE void add(float (&sums)[kCount], int group, int64_t line, int channel) const {
    const float* in = partial + (group * perGroup + line) * kCount * channels + channel;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += in[static_cast<int64_t>(i) * channels];
  }
};

// The same of lines that other blocks of this launch have written.
template <int kCount>
struct ArrivedPlanes : Planes<kCount> {
  DEVICE void add(float (&sums)[kCount], int group, int64_t line, int channel) const {
    const float* in = this->partial + (group * this->perGroup + line) * kCount * this->channels + channel;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] += loadCoherent(in + static_cast<int64_t>(i) * this->channels);
  }
};

// Adds lines first, first + step, .. below perGroup.
template <class Lines>
DEVICE void addLines(float (&sums)[Lines::kSums], Lines& lines, int group, int channel, int64_t first, int64_t step) {
  lines.start(group, channel);
#pragma unroll 8
  for (int64_t line = first; line < lines.perGroup; line += step) lines.add(sums, group, line, channel);
}

// The calling thread's place in a block.
struct FinishPlace {
  int column, line, lines, channel;
  DEVICE FinishPlace()
      : column(static_cast<int>(threadIdx.x) % kColumns),
        line(static_cast<int>(threadIdx.x) / kColumns),
        lines(static_cast<int>(blockDim.x) / kColumns),
        channel(static_cast<int>(blockIdx.x) * kColumns + column) {}
};

// The sum over `share` lines of a block from the calling one on, in their order, of kSums values of each; for the first line of a share.
template <int kSums>
DEVICE void addDown(float (&sums)[kSums], float* buffer, const FinishPlace& at, int share) {
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kSums; ++i) buffer[i * kLines * kColumns + threadIdx.x] = sums[i];
  __syncthreads();
  if (at.line % share != 0 || at.line + share > at.lines) return;
#pragma unroll 8
  for (int l = 1; l < share; ++l)
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] += buffer[i * kLines * kColumns + static_cast<int>(threadIdx.x) + l * kColumns];
}

// The sums of the lines of each group, `share` lines of the block to a group and as many groups at a time as that leaves room for. One
// thread a channel and group calls job.finish(group, channel, sums, both); what that leaves in `both` is added over the groups, in their
// order, for job.finished(channel, totals).
template <class Lines, class Job>
DEVICE void finishGroups(const FinishPlace& at, Lines lines, const Job& job, int groups, int share, float* buffer) {
  const int own = at.line / share, together = at.lines / share;
  float totals[2] = {};
  for (int first = 0; first < groups; first += together) {
    const bool takes = at.channel < lines.channels && first + own < groups && own < together;
    float sums[Lines::kSums] = {}, both[2] = {};
    if (takes) addLines(sums, lines, first + own, at.channel, at.line % share, share);
    addDown(sums, buffer, at, share);
    if (takes && at.line % share == 0) job.finish(first + own, at.channel, sums, both);
    addDown(both, buffer, at, at.lines);
    totals[0] += both[0];
    totals[1] += both[1];
  }
  if (at.line == 0 && at.channel < lines.channels) job.finished(at.channel, totals);
}

// How the lines of `groups` groups are shared: lines of a block, lines of the finishing block for a group, and the blocks of a group, 0
// where one block takes all groups.
struct FinishPlan {
  int groups, lines, share;
  int64_t parts = 0;
  FinishPlan(const Call& call, int64_t perGroup, int groups, int64_t channels) : groups(groups) {
    const int64_t tiles = ceilDiv(channels, kColumns);
    lines = perGroup * groups > 64 ? kLines : 8;
    share = std::max(1, lines / groups);
    // As many parts as give every multiprocessor a block, of two lines a thread at least.
    const int64_t most = std::min<int64_t>({64, ceilDiv(multiprocessors(call), tiles * groups), perGroup / (2 * kLines)});
    if (perGroup > int64_t{kSerial} * share && most > 1 && tiles <= kArrivals) parts = most;
  }
  int threads() const { return kColumns * lines; }
};

// blockIdx: channels, part, group. `sums` [groups, parts, kSums, channels] and `arrived` [channel tiles] are for more than one part.
template <class Lines, class Job>
__global__ void __launch_bounds__(kColumns* kLines)
    finishLinesKernel(Lines lines, Job job, int groups, int share, float* sums, int* arrived) {
  const FinishPlace at;
  float* buffer = &sharedMemory<float>();
  if (sums == nullptr) return finishGroups(at, lines, job, groups, share, buffer);
  const int group = static_cast<int>(blockIdx.z), part = static_cast<int>(blockIdx.y), parts = static_cast<int>(gridDim.y);
  float own[Lines::kSums] = {};
  if (at.channel < lines.channels)
    addLines(own, lines, group, at.channel, static_cast<int64_t>(part) * at.lines + at.line, static_cast<int64_t>(parts) * at.lines);
  addDown(own, buffer, at, at.lines);
  if (at.line == 0 && at.channel < lines.channels)
#pragma unroll
    for (int i = 0; i < Lines::kSums; ++i)
      sums[((static_cast<int64_t>(group) * parts + part) * Lines::kSums + i) * lines.channels + at.channel] = own[i];
  if (!lastToArrive(arrived + blockIdx.x, parts * groups, reinterpret_cast<int*>(buffer))) return;
  finishGroups(at, ArrivedPlanes<Lines::kSums>{{sums, parts, lines.channels}}, job, groups, share, buffer);
}

template <class Lines, class Job>
void finishLines(const Call& call, const FinishPlan& plan, const Lines& lines, const Job& job) {
  DeviceScratch<float> sums(call, plan.groups * plan.parts * Lines::kSums * lines.channels);
  launch(call, finishLinesKernel<Lines, Job>,
         Grid{ceilDiv(lines.channels, kColumns), std::max<int64_t>(1, plan.parts), plan.parts > 0 ? plan.groups : 1}, plan.threads(),
         static_cast<size_t>(std::max(2, Lines::kSums)) * kLines * kColumns * sizeof(float), lines, job, plan.groups, plan.share,
         plan.parts > 0 ? sums.data() : nullptr, arrivalsOf(call));
}

struct SumJob {
  float* out;
  DEVICE void finish(int, int, const float (&sums)[1], float (&both)[2]) const { both[0] = sums[0]; }
  DEVICE void finished(int channel, const float (&totals)[2]) const { out[channel] = totals[0]; }
};

// out [channels] = the sum of all lines.
inline void sumLines(const Call& call, const Planes<1>& lines, float* out) {
  finishLines(call, FinishPlan(call, lines.perGroup, 1, lines.channels), lines, SumJob{out});
}

}  // namespace densecl::cuda

// Sums over lines of partial results: a group's are [perGroup, planes, channels], and those of a convolution's epilogue are many thousand.
// They are added by blocks of kColumns channels and up to kLines lines, each thread with loads of eight lines on their way, in one launch
// or, where that would leave a thread more than kSerial lines, in two: `parts` partial sums of each group first. The order is fixed.
#pragma once
#include <algorithm>

#include "kernel/vector.cuh"
#include "runtime.h"

namespace densecl::cuda {

constexpr int kColumns = 32, kLines = 32, kSerial = 32;

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

// Adds lines first, first + step, .. below perGroup.
template <class Lines>
DEVICE void addLines(float (&sums)[Lines::kSums], Lines& lines, int group, int channel, int64_t first, int64_t step) {
  lines.start(group, channel);
#pragma unroll 8
  for (int64_t line = first; line < lines.perGroup; line += step) lines.add(sums, group, line, channel);
}

// The calling thread's place in a block that finishes.
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

// The sums of the lines of each group, `share` lines of the block to a group and as many groups at a time as that leaves room for.
// finish(group, sums, both) is called by one thread a channel and group; what it leaves in `both` is added over the groups, in their order,
// to `totals` of the block's first line.
template <class Lines, class Finish>
DEVICE void finishGroups(const FinishPlace& at, Lines& lines, int groups, int share, float* buffer, float (&totals)[2], Finish finish) {
  const int own = at.line / share, together = at.lines / share;
  for (int first = 0; first < groups; first += together) {
    const bool takes = at.channel < lines.channels && first + own < groups && own < together;
    float sums[Lines::kSums] = {}, both[2] = {};
    if (takes) addLines(sums, lines, first + own, at.channel, at.line % share, share);
    addDown(sums, buffer, at, share);
    if (takes && at.line % share == 0) finish(first + own, sums, both);
    addDown(both, buffer, at, at.lines);
    totals[0] += both[0];
    totals[1] += both[1];
  }
}

// sums [groups, parts, kSums, channels]; blockIdx: channels, part, group
template <class Lines>
__global__ void __launch_bounds__(kColumns* kLines) addLinesKernel(Lines lines, float* out) {
  const FinishPlace at;
  float sums[Lines::kSums] = {};
  const int group = static_cast<int>(blockIdx.z), part = static_cast<int>(blockIdx.y), parts = static_cast<int>(gridDim.y);
  if (at.channel < lines.channels)
    addLines(sums, lines, group, at.channel, static_cast<int64_t>(part) * at.lines + at.line, static_cast<int64_t>(parts) * at.lines);
  addDown(sums, &sharedMemory<float>(), at, at.lines);
  if (at.line != 0 || at.channel >= lines.channels) return;
#pragma unroll
  for (int i = 0; i < Lines::kSums; ++i)
    out[((static_cast<int64_t>(group) * parts + part) * Lines::kSums + i) * lines.channels + at.channel] = sums[i];
}

// How the lines of `groups` groups are shared: lines of a block, lines of the finishing block for a group, and parts of the launch before
// it, 0 without one.
struct FinishPlan {
  int lines, share;
  int64_t parts;
  FinishPlan(const Call& call, int64_t perGroup, int groups, int64_t channels) {
    lines = perGroup * groups > 64 ? kLines : 8;
    share = std::max(1, lines / groups);
    // As many parts as give every multiprocessor a block, of two lines a thread at least.
    const int64_t fill = ceilDiv(multiprocessors(call), ceilDiv(channels, kColumns) * groups);
    parts = perGroup <= int64_t{kSerial} * share ? 0 : std::max<int64_t>(1, std::min<int64_t>({64, fill, perGroup / (2 * kLines)}));
  }
  Grid grid(int64_t channels) const { return {ceilDiv(channels, kColumns)}; }
  int threads() const { return kColumns * lines; }
  static size_t shared(int sums) { return static_cast<size_t>(sums) * kLines * kColumns * sizeof(float); }
};

// Calls finish(Lines) with the lines, or with the sums of their parts.
template <class Lines, class Finish>
void finishLines(const Call& call, const FinishPlan& plan, const Lines& lines, int groups, Finish finish) {
  if (plan.parts == 0) return finish(lines);
  DeviceScratch<float> sums(call, groups * plan.parts * Lines::kSums * lines.channels);
  launch(call, addLinesKernel<Lines>, Grid{ceilDiv(lines.channels, kColumns), plan.parts, groups}, kColumns * kLines,
         FinishPlan::shared(Lines::kSums), lines, sums.data());
  finish(Planes<Lines::kSums>{sums.data(), plan.parts, lines.channels});
}

static __global__ void __launch_bounds__(kColumns* kLines) finishSumKernel(Planes<1> lines, float* out) {
  const FinishPlace at;
  float sums[1] = {};
  if (at.channel < lines.channels) addLines(sums, lines, 0, at.channel, at.line, at.lines);
  addDown(sums, &sharedMemory<float>(), at, at.lines);
  if (at.line == 0 && at.channel < lines.channels) out[at.channel] = sums[0];
}

// out [channels] = the sum of all lines.
inline void sumLines(const Call& call, const Planes<1>& lines, float* out) {
  const FinishPlan plan(call, lines.perGroup, 1, lines.channels);
  finishLines(call, plan, lines, 1, [&](const Planes<1>& all) {
    launch(call, finishSumKernel, plan.grid(lines.channels), plan.threads(), FinishPlan::shared(1), all, out);
  });
}

}  // namespace densecl::cuda

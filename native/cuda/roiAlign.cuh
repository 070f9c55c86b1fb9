// What RoIAlign and its gradient have in common: the samples of a box, and products of bf16. native/cpu/roiAlign.cpp has the definition.
#pragma once
#include "kernel/mma.cuh"
#include "kernel/vector.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kWarps = kThreads / kWarp;
constexpr float kReach = 16777216.0f;

DEVICE int minimum(int a, int b) { return a < b ? a : b; }
DEVICE int maximum(int a, int b) { return a > b ? a : b; }

struct Range {
  int from, to;
};

// The samples of a box along one axis.
struct Axis {
  float start, bin;
  int bins, samples, cells;

  DEVICE Axis(float low, float high, float scale, int bins, int cells, int ratio, bool aligned) : bins(bins), samples(0), cells(cells) {
    const float offset = aligned ? 0.5f : 0.0f;
    start = low * scale - offset;
    float length = high * scale - offset - start;
    if (!aligned) length = length > 1 || length != length ? length : 1.0f;
    bin = length / static_cast<float>(bins);
    if (!finite()) return;
    samples = ratio > 0 ? ratio : static_cast<int>(ceilf(bin));
    samples = samples > 0 ? samples : 0;
  }
  DEVICE bool finite() const { return fabsf(start) < kReach && fabsf(bin * static_cast<float>(bins)) < kReach; }
  DEVICE float position(int p, int i) const {
    return start + static_cast<float>(p) * bin + (static_cast<float>(i) + 0.5f) * bin / static_cast<float>(samples);
  }
  DEVICE bool outside(float at) const { return at < -1 || at > static_cast<float>(cells); }
  // Those of a bin whose position may lie between low and high.
  DEVICE Range within(int p, float low, float high) const {
    const float step = bin / static_cast<float>(samples), from = start + static_cast<float>(p) * bin;
    if (step == 0 || samples == 0) return {0, samples};
    const float a = (low - from) / step, b = (high - from) / step;
    const float first = fmaxf(fminf(a, b) - 2, 0.0f), last = fminf(fmaxf(a, b) + 2, static_cast<float>(samples));
    return {first < static_cast<float>(samples) ? static_cast<int>(first) : samples, last > 0 ? static_cast<int>(last) : 0};
  }
  // A position among the cells' centres.
  DEVICE float clamped(float at) const { return fminf(fmaxf(at, 0.0f), static_cast<float>(cells - 1)); }
};

struct Boxes {
  const float* boxes;
  const int32_t* index;
  int images, rows, columns, channels, count, p, q, ratio;
  float scale;
  bool aligned;
  Report* report;

  template <class Names>
  Boxes(const Call& call, Names, const Tensor& map, const Tensor& bins)
      : boxes(call.tensor(Names::boxes).template data<float>()),
        index(call.tensor(Names::index).template data<int32_t>()),
        images(static_cast<int>(map.dim(0))),
        rows(static_cast<int>(map.dim(1))),
        columns(static_cast<int>(map.dim(2))),
        channels(static_cast<int>(map.dim(3))),
        count(static_cast<int>(bins.dim(0))),
        p(static_cast<int>(bins.dim(1))),
        q(static_cast<int>(bins.dim(2))),
        ratio(static_cast<int>(call.integer(Names::samplingRatio))),
        scale(static_cast<float>(call.number(Names::scale))),
        aligned(call.flag(Names::aligned)),
        report(reportOf(call)) {}
  DEVICE Axis axis(int r, bool down) const {
    const int from = r * 4 + (down ? 1 : 0);
    return {boxes[from], boxes[from + 2], scale, down ? p : q, down ? rows : columns, ratio, aligned};
  }
  // The image of a box, or -1.
  DEVICE int image(int r) const {
    const int found = index[r];
    if (found >= -1 && found < images) return found;
    fileReport(report, kBoxImage, found, images);
    return -1;
  }
};

// The products of bf16: 16 results, which are bins or cells, of 16 of the others, for 64 channels. Weights are sums of two bf16, so they
// err by 2^-17. A lane loads eight channels of four of those 16 at a time, as they lie: which channel a column of a product is, is free.
// A value that is not finite spreads to all results of a product, also where its weight is 0.
// With g = lane / 4 and t = lane % 4, terms 2t and 2t + 1, then those behind them by 8.
constexpr int kGroup = 64;

struct alignas(16) Split {
  uint32_t high[4], low[4];
  DEVICE void set(int i, float a, float b) {
    high[i] = packPair(a, b);
    low[i] = packPair(a - floatOf(high[i] << 16), b - floatOf(high[i] & 0xffff0000u));
  }
};

DEVICE void addProducts(float (&sums)[8][4], const Split& weights, const Words<bf16> (&words)[4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const auto pair = [&](int i) {
      const uint32_t a = words[i].v[j / 2], b = words[i + 1].v[j / 2];
      return j % 2 == 0 ? lowHalves(a, b) : highHalves(a, b);
    };
    const uint32_t terms[2] = {pair(0), pair(2)};
    mmaBf16(sums[j], weights.high, terms);
    mmaBf16(sums[j], weights.low, terms);
  }
}

// Of result g, or g + 8, the channels 16t to 16t + 15.
DEVICE void storeProducts(bf16* to, const float (&sums)[8][4], int second) {
  for (int e = 0; e < 2; ++e) {
    float values[8];
    for (int j = 0; j < 8; ++j) values[j] = sums[j][2 * second + e];
    storeRounded<bf16, 8>(to + (laneIndex() % 4 * 2 + e) * 8, values);
  }
}

}  // namespace
}  // namespace densecl::cuda

// RoIAlign (K. He et al., arXiv:1703.06870): of each box [x1, y1, x2, y2] P x Q bins, each the mean of bilinear samples of the map.
//   along an axis of `cells` cells: start = x1 scale - 1/2, length = (x2 - x1) scale, bin = length / bins, samples in a bin by the sampling
//   ratio, or ceil(bin); position = start + p bin + (i + 1/2) bin / samples. Not aligned: without the 1/2, and length of at least 1.
//   A position outside of [-1, cells] counts as 0, one outside of the cells' centres takes the border's value.
// The mean of products of both axes is the product of their means, so a bin is a matrix of weights of rows times one of columns: cells are
// read once for a row of bins, not four times a sample.
// index: the image of each box; -1 for a place without one, whose bins are 0. Geometry is in double. A box that is not finite, or reaches
// beyond 2^24 cells, has NaN for its bins and sends no gradient back.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../core/parallel.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

constexpr double kReach = 16777216;

// The weights of the cells in each bin along one axis: bin p has those of cells first[p] .. first[p] + count[p] from weights[p * most].
template <class T>
struct AxisWeights {
  bool finite = true;
  std::vector<int64_t> first, count;
  std::vector<T> weights;
  int64_t most = 0;
  int64_t begin = 0, end = 0;  // the cells of all bins

  AxisWeights(double low, double high, double scale, int64_t bins, int64_t cells, int64_t ratio, bool aligned) : first(bins), count(bins) {
    const double offset = aligned ? 0.5 : 0, start = low * scale - offset;
    double length = high * scale - offset - start;
    if (!aligned) length = std::max(length, 1.0);
    finite = std::abs(start) < kReach && std::abs(length) < kReach;  // not of a NaN
    if (!finite) return;
    const double bin = length / static_cast<double>(bins);
    const auto samples = ratio > 0 ? ratio : static_cast<int64_t>(std::ceil(bin));
    if (samples <= 0) return;
    const double step = bin / static_cast<double>(samples);
    // No more cells than the bin is long, and those of its ends.
    most = std::min(cells, static_cast<int64_t>(std::abs(bin)) + 3);
    weights.assign(static_cast<size_t>(bins * most), T{0});
    std::vector<double> sums(static_cast<size_t>(most));
    begin = cells;
    for (int64_t p = 0; p < bins; ++p) {
      const double from = start + static_cast<double>(p) * bin;
      // Samples that may lie within [-1, cells]: of a box that is far larger than the map they are few.
      int64_t i0 = 0, i1 = samples;
      if (step != 0) {
        const double a = (-1 - from) / step, b = (static_cast<double>(cells) - from) / step;
        i0 = std::max<int64_t>(0, static_cast<int64_t>(std::clamp(std::min(a, b) - 2, -4e18, 4e18)));
        i1 = std::min<int64_t>(samples, static_cast<int64_t>(std::clamp(std::max(a, b) + 2, -4e18, 4e18)));
      }
      int64_t lowest = cells, beyond = 0;
      std::fill(sums.begin(), sums.end(), 0.0);
      // Twice: the cells, then their weights.
      for (const bool weigh : {false, true})
        for (int64_t i = i0; i < i1; ++i) {
          double at = from + (static_cast<double>(i) + 0.5) * bin / static_cast<double>(samples);
          if (at < -1 || at > static_cast<double>(cells)) continue;
          at = std::max(at, 0.0);
          const int64_t cell = std::min(static_cast<int64_t>(at), cells - 1), next = std::min(cell + 1, cells - 1);
          const double share = cell == next ? 0 : at - static_cast<double>(cell);
          if (weigh) {
            sums[static_cast<size_t>(cell - lowest)] += (1 - share) / static_cast<double>(samples);
            sums[static_cast<size_t>(next - lowest)] += share / static_cast<double>(samples);
          } else {
            lowest = std::min(lowest, cell);
            beyond = std::max(beyond, next + 1);
          }
        }
      first[p] = lowest;
      count[p] = std::max<int64_t>(0, beyond - lowest);
      for (int64_t k = 0; k < count[p]; ++k) weights[static_cast<size_t>(p * most + k)] = static_cast<T>(sums[static_cast<size_t>(k)]);
      if (count[p] == 0) continue;
      begin = std::min(begin, lowest);
      end = std::max(end, beyond);
    }
    begin = std::min(begin, end);
  }
  const T* of(int64_t p) const { return weights.data() + p * most; }
};

template <class T>
struct Boxes {
  const T* boxes;
  const int32_t* index;
  int64_t images, rows, columns, channels, count, p, q;
  double scale;
  int64_t ratio;
  bool aligned;

  template <class Names>
  Boxes(const Call& call, Names, const Tensor& map, const Tensor& bins)
      : boxes(call.tensor(Names::boxes).template data<T>()),
        index(call.tensor(Names::index).template data<int32_t>()),
        images(map.dim(0)),
        rows(map.dim(1)),
        columns(map.dim(2)),
        channels(map.dim(3)),
        count(bins.dim(0)),
        p(bins.dim(1)),
        q(bins.dim(2)),
        scale(call.number(Names::scale)),
        ratio(call.integer(Names::samplingRatio)),
        aligned(call.flag(Names::aligned)) {
    for (int64_t r = 0; r < count; ++r)
      REQUIRE(
          index[r] >= -1 && index[r] < images, "RANGE",
          std::string(call.op) + ": image " + std::to_string(index[r]) + " of a box is outside of " + std::to_string(images) + " images");
  }
  AxisWeights<T> vertical(int64_t r) const {
    return {static_cast<double>(boxes[r * 4 + 1]), static_cast<double>(boxes[r * 4 + 3]), scale, p, rows, ratio, aligned};
  }
  AxisWeights<T> horizontal(int64_t r) const {
    return {static_cast<double>(boxes[r * 4]), static_cast<double>(boxes[r * 4 + 2]), scale, q, columns, ratio, aligned};
  }
};

// out[i] = sum over k of weights[k] in[k stride + i]
template <class T>
struct Combination {
  T* out;
  const T* in;
  const T* weights;
  int64_t terms, stride, length;
};
template <class T>
INLINE void combineLoop(const Combination<T>& job) {
  constexpr int64_t kLanes = 64 / sizeof(T) * 2;
  int64_t i = 0;
  for (; i + kLanes <= job.length; i += kLanes) {
    T sums[kLanes] = {};
    for (int64_t k = 0; k < job.terms; ++k) {
      const T weight = job.weights[k];
      const T* in = job.in + k * job.stride + i;
      for (int64_t l = 0; l < kLanes; ++l) sums[l] += weight * in[l];
    }
    for (int64_t l = 0; l < kLanes; ++l) job.out[i + l] = sums[l];
  }
  for (; i < job.length; ++i) {
    T sum{0};
    for (int64_t k = 0; k < job.terms; ++k) sum += job.weights[k] * job.in[k * job.stride + i];
    job.out[i] = sum;
  }
}
SIMD_LOOP(combine, Combination)

// out[j outStride + i] += weights[j weightStride] in[j inStride + i]
template <class T>
struct Accumulation {
  T* out;
  const T* in;
  const T* weights;
  int64_t count, outStride, inStride, weightStride, length;
};
template <class T>
INLINE void accumulateLoop(const Accumulation<T>& job) {
  for (int64_t j = 0; j < job.count; ++j) {
    T* __restrict out = job.out + j * job.outStride;
    const T* in = job.in + j * job.inStride;
    const T weight = job.weights[j * job.weightStride];
    for (int64_t i = 0; i < job.length; ++i) out[i] += weight * in[i];
  }
}
SIMD_LOOP(accumulate, Accumulation)

}  // namespace

void roiAlign(const Call& call) {
  using Names = args::roiAlign;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Boxes<T> all(call, Names{}, x, y);
    const int64_t C = all.channels;
    parallelFor(all.count, [&](int64_t r) {
      T* out = y.data<T>() + r * all.p * all.q * C;
      if (all.index[r] < 0) return void(std::fill_n(out, all.p * all.q * C, T{0}));
      const AxisWeights<T> vertical = all.vertical(r), horizontal = all.horizontal(r);
      if (!vertical.finite || !horizontal.finite) return void(std::fill_n(out, all.p * all.q * C, std::numeric_limits<T>::quiet_NaN()));
      const int64_t width = horizontal.end - horizontal.begin;
      const T* from = x.data<T>() + (all.index[r] * all.rows * all.columns + horizontal.begin) * C;
      std::vector<T> line(static_cast<size_t>(width * C));
      for (int64_t p = 0; p < all.p; ++p) {
        if (vertical.count[p] > 0)
          combine(Combination<T>{line.data(), from + vertical.first[p] * all.columns * C, vertical.of(p), vertical.count[p],
                                 all.columns * C, width * C});
        for (int64_t q = 0; q < all.q; ++q, out += C) {
          if (vertical.count[p] == 0 || horizontal.count[q] == 0)
            std::fill_n(out, C, T{0});
          else
            combine(Combination<T>{out, line.data() + (horizontal.first[q] - horizontal.begin) * C, horizontal.of(q), horizontal.count[q],
                                   C, C});
        }
      }
    });
  });
}

// dx[cell] = the sum over boxes in their order, and over bins, of the weight of its row times that of its column times dy
void roiAlignBackward(const Call& call) {
  using Names = args::roiAlignBackward;
  const Tensor &dx = call.tensor(Names::dx), &dy = call.tensor(Names::dy);
  dispatchFloat(call, dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Boxes<T> all(call, Names{}, dx, dy);
    const int64_t C = all.channels;
    std::vector<std::vector<AxisWeights<T>>> axes(static_cast<size_t>(all.count));
    parallelRange(all.count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        if (all.index[r] >= 0) axes[r] = {all.vertical(r), all.horizontal(r)};
    });
    constexpr int64_t kStrip = 64;
    const int64_t strips = (C + kStrip - 1) / kStrip, size = all.rows * all.columns * C;
    parallelFor(all.images * strips, [&](int64_t unit) {
      const int64_t image = unit / strips, channel = unit % strips * kStrip, length = std::min(kStrip, C - channel);
      T* to = dx.data<T>() + image * size + channel;
      for (int64_t cell = 0; cell < all.rows * all.columns; ++cell) std::fill_n(to + cell * C, length, T{0});
      std::vector<T> line(static_cast<size_t>(all.columns * kStrip));
      for (int64_t r = 0; r < all.count; ++r) {
        if (all.index[r] != image) continue;
        const AxisWeights<T>&vertical = axes[r][0], &horizontal = axes[r][1];
        const int64_t width = horizontal.end - horizontal.begin;
        if (!vertical.finite || width <= 0) continue;
        const T* from = dy.data<T>() + r * all.p * all.q * C + channel;
        for (int64_t p = 0; p < all.p; ++p) {
          if (vertical.count[p] == 0) continue;
          std::fill_n(line.data(), width * kStrip, T{0});
          for (int64_t q = 0; q < all.q; ++q)
            accumulate(Accumulation<T>{line.data() + (horizontal.first[q] - horizontal.begin) * kStrip, from + (p * all.q + q) * C,
                                       horizontal.of(q), horizontal.count[q], kStrip, 0, 1, length});
          for (int64_t k = 0; k < vertical.count[p]; ++k)
            accumulate(Accumulation<T>{to + ((vertical.first[p] + k) * all.columns + horizontal.begin) * C, line.data(), vertical.of(p) + k,
                                       width, C, kStrip, 0, length});
        }
      }
    });
  });
}

}  // namespace densecl::cpu

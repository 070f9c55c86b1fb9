// Losses: value and gradient in one pass.
#include <cmath>
#include <limits>

#include "gemm.h"
#include "isa.h"
#include "math.h"
#include "ops.h"
#include "widen.h"

namespace densecl::cpu {
namespace {

// Of one row and one stretch of the queue: p[j] = exp((s[j] - maximum) / T), and the sum of p.
template <class T>
struct Exponential {
  T* p;
  int64_t count;
  T maximum, inverseTemperature;
  T* sum;
};

// exp by 2^n * polynomial, as loops over libm do not vectorise: x = n ln2 + r with |r| <= ln2 / 2, e^r by its Taylor
// series to degree 7 (relative error below 1e-7, the rounding of float). Arguments are at most 0.
INLINE float fastExp(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float n = static_cast<float>(static_cast<int32_t>(x * 1.44269504f - 0.5f));
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float e = 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  union {
    uint32_t i;  // a NaN's may be any number
    float f;
  } power = {(static_cast<uint32_t>(static_cast<int32_t>(n)) + 127u) << 23};
  return e * power.f;
}
INLINE double fastExp(double x) { return std::exp(x); }

template <class T>
INLINE void exponentialLoop(const Exponential<T>& job) {
  constexpr int lanes = 16;  // sums in a fixed order that does not depend on the vector width
  T sum[lanes] = {};
  int64_t j = 0;
  for (; j + lanes <= job.count; j += lanes)
    for (int l = 0; l < lanes; ++l) {
      const T value = fastExp((job.p[j + l] - job.maximum) * job.inverseTemperature);
      job.p[j + l] = value;
      sum[l] += value;
    }
  for (; j < job.count; ++j) {
    const T value = fastExp((job.p[j] - job.maximum) * job.inverseTemperature);
    job.p[j] = value;
    sum[0] += value;
  }
  T total{0};
  for (int l = 0; l < lanes; ++l) total += sum[l];
  *job.sum = total;
}
SIMD_LOOP(exponential, Exponential)

// The cross-entropies of some rows, and their gradients.
template <class T>
struct CrossEntropy {
  const T* x;
  T* dx;  // or null
  const int32_t* target;
  const double* weights;  // of the rows
  double* terms;          // weights times the losses
  int64_t rows, columns;
  double divisor;  // of the gradients
  T* line;         // scratch: a row in whole vectors
};

constexpr int kLossLanes = 16;  // sums in a fixed order that does not depend on the vector width

template <class T>
INLINE void crossEntropyRowsLoop(const CrossEntropy<T>& job) {
  const int64_t width = (job.columns + kLossLanes - 1) / kLossLanes * kLossLanes;
  T* __restrict line = job.line;
  for (int64_t r = 0; r < job.rows; ++r) {
    const T* row = job.x + r * job.columns;
    T* __restrict gradient = job.dx == nullptr ? nullptr : job.dx + r * job.columns;
    if (job.weights[r] == 0) {
      if (gradient != nullptr)
        for (int64_t c = 0; c < job.columns; ++c) gradient[c] = T{0};
      continue;
    }
    for (int64_t c = 0; c < job.columns; ++c) line[c] = row[c];
    for (int64_t c = job.columns; c < width; ++c) line[c] = -std::numeric_limits<T>::infinity();
    T largest[kLossLanes], sums[kLossLanes] = {};
    for (int l = 0; l < kLossLanes; ++l) largest[l] = line[l];
    for (int64_t c = kLossLanes; c < width; c += kLossLanes)
      for (int l = 0; l < kLossLanes; ++l) largest[l] = line[c + l] > largest[l] ? line[c + l] : largest[l];
    for (int half = kLossLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) largest[l] = largest[l + half] > largest[l] ? largest[l + half] : largest[l];
    const T top = largest[0];
    for (int64_t c = 0; c < width; c += kLossLanes)
      for (int l = 0; l < kLossLanes; ++l) {
        const T e = expOf(line[c + l] - top);
        line[c + l] = e;
        sums[l] += e;
      }
    for (int half = kLossLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    const double sum = sums[0], weight = job.weights[r];
    const int32_t label = job.target[r];
    job.terms[r] = weight * (std::log(sum) + static_cast<double>(top) - static_cast<double>(row[label]));
    if (gradient == nullptr) continue;
    const T scale = static_cast<T>(weight / (sum * job.divisor));
    for (int64_t c = 0; c < job.columns; ++c) gradient[c] = scale * line[c];
    gradient[label] = static_cast<T>((line[label] / sum - 1) * weight / job.divisor);
  }
}
SIMD_LOOP(crossEntropyRows, CrossEntropy)

// A loss of each element against its target, and its derivative; w of an element is that of the row of its leading axes.
//   smoothL1: d = x - target, d^2 / (2 beta) where |d| < beta, else |d| - beta / 2
//   binary cross-entropy: max(x, 0) - x target + log(1 + e^-|x|), whose derivative is sigma(x) - target
template <class T>
struct Pointwise {
  const T *x, *target, *weight;  // weight or null
  T* terms;                      // w times the loss
  T* dx;                         // or null: scale w times the derivative
  int64_t length;
  T beta, scale;
};

// What weighs 0 is 0, whatever stands there.
template <class T>
INLINE T weighted(T weight, T value) {
  return weight == T(0) ? T(0) : weight * value;
}

template <class T>
INLINE void smoothL1TermsLoop(const Pointwise<T>& job) {
  const T inverse = job.beta > T(0) ? T(1) / job.beta : T(0);
  for (int64_t i = 0; i < job.length; ++i) {
    const T d = job.x[i] - job.target[i], size = d < T(0) ? -d : d, w = job.weight[i];
    const T value = size < job.beta ? T(0.5) * d * d * inverse : size - T(0.5) * job.beta;
    job.terms[i] = weighted(w, value);
    const T sign = d > T(0) ? T(1) : d < T(0) ? T(-1) : d;
    if (job.dx != nullptr) job.dx[i] = weighted(w * job.scale, size < job.beta ? d * inverse : sign);
  }
}

template <class T>
INLINE void entropyTermsLoop(const Pointwise<T>& job) {
  for (int64_t i = 0; i < job.length; ++i) {
    const T x = job.x[i], target = job.target[i], w = job.weight[i], e = expOf(x < T(0) ? x : -x);
    // log(1 + e) to the relative precision of e (W. Kahan).
    const T sum = T(1) + e, part = sum - T(1), log = part == T(0) ? e : logOf(sum) * (e / part);
    job.terms[i] = weighted(w, (x > T(0) ? x : T(0)) - x * target + log);
    const T sigma = x < T(0) ? e / sum : T(1) / sum;
    if (job.dx != nullptr) job.dx[i] = weighted(w * job.scale, sigma - target);
  }
}
SIMD_LOOP(smoothL1Terms, Pointwise)
SIMD_LOOP(entropyTerms, Pointwise)

// loss = scale times the sum of the terms, added in double by chunks of a fixed length.
template <class Names, class Terms>
void pointwiseLoss(const Call& call, Names, double beta, Terms terms) {
  const Tensor &loss = call.tensor(Names::loss), *dx = call.optional(Names::dx), &x = call.tensor(Names::x),
               &target = call.tensor(Names::target), *weight = call.optional(Names::weight);
  const int64_t n = x.size(), weights = weight == nullptr ? 1 : weight->size();
  REQUIRE(weights > 0 ? n % weights == 0 : n == 0, "SHAPE",
          std::string(call.op) + ": expected a weight for each row of " + describe(x) + " but received " + describe(*weight));
  const int64_t share = weights > 0 ? n / weights : 1;
  const double scale = call.number(Names::scale);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t kChunk = 1024;
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    std::vector<double> sums(static_cast<size_t>(chunks));
    parallelRange(chunks, 8, [&](int64_t begin, int64_t end) {
      Scratch<T> terms_(kChunk), own(kChunk);
      std::fill_n(own.data(), kChunk, T{1});
      for (int64_t k = begin; k < end; ++k) {
        const int64_t first = k * kChunk, length = std::min(kChunk, n - first);
        if (weight != nullptr)
          for (int64_t i = 0; i < length; ++i) own.data()[i] = weight->data<T>()[(first + i) / share];
        terms(Pointwise<T>{x.data<T>() + first, target.data<T>() + first, own.data(), terms_.data(),
                           dx == nullptr ? nullptr : dx->data<T>() + first, length, static_cast<T>(beta), static_cast<T>(scale)});
        for (int64_t i = 0; i < length; ++i) sums[k] += static_cast<double>(terms_.data()[i]);
      }
    });
    double total = 0;
    for (const double sum : sums) total += sum;
    loss.data<T>()[0] = static_cast<T>(total * scale);
  });
}

}  // namespace

// R rows of D dimensions, K negatives:
//   loss = mean over rows of log(e^(q.k+/T) + sum over j of e^(q.queue_j/T)) - q.k+/T
//   dquery = ((p0 - 1) k+ + sum over j of p_j queue_j) / (R T), with p the softmax: attention with values = keys, so one pass
//   over the queue gives loss and gradient. The maximum is carried along (online softmax, M. Milakov, arXiv:1805.02867), and
//   only a stretch of the logits of a few rows, and what the products read of a part of the queue, exist at a time.
// statistics: mean positive similarity, mean negative similarity, share of rows whose positive is the largest, mean log sum exp
void infoNce(const Call& call) {
  using Names = args::infoNce;
  const Tensor &loss = call.tensor(Names::loss), *dquery = call.optional(Names::dquery), &statistics = call.tensor(Names::statistics),
               &query = call.tensor(Names::query), &positive = call.tensor(Names::positive), &queue = call.tensor(Names::queue);
  const int64_t R = query.dim(0), D = query.dim(1), K = queue.dim(0);
  dispatchStored(call, query.dtype, [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    const T invT = static_cast<T>(1 / call.number(Names::temperature));
    const As<T, S> queries(query.data<S>(), R * D), positives(positive.data<S>(), R * D);
    constexpr int64_t stretch = 256, partStretches = 16;
    const int64_t stretches = ceilDiv(K, stretch), parts = ceilDiv(stretches, partStretches);
    const TileKernel<T>&scores = tileKernel<T>(K), &mix = tileKernel<T>(D);
    const int64_t panels = ceilDiv(D, mix.columns), width = panels * mix.columns, panelSize = stretch * mix.columns;

    // Of each row, over the parts of the queue so far.
    std::vector<T> maximum(R), sum(R, T{1}), best(R, -std::numeric_limits<T>::infinity()), own(R);
    std::vector<double> negative(R);
    Scratch<T> gradient(dquery == nullptr ? 0 : R * width);
    if (dquery != nullptr) std::fill_n(gradient.data(), R * width, T{0});
    const int64_t block = 4 * std::max(scores.rows, mix.rows), blocks = ceilDiv(R, block);
    const int32_t tap = 0;
    const auto rowsOf = [&](int64_t b) { return std::min(block, R - b * block); };
    parallelFor(blocks, [&](int64_t b) {
      for (int64_t i = b * block; i < b * block + rowsOf(b); ++i) {
        double dot = 0;
        for (int64_t c = 0; c < D; ++c) dot += static_cast<double>(queries.data()[i * D + c]) * positives.data()[i * D + c];
        own[i] = maximum[i] = static_cast<T>(dot);
      }
    });
    for (int64_t part = 0; part < parts; ++part) {
      // Parts are as even as stretches allow: a kernel is chosen by the number of columns.
      const int64_t begin = stretches * part / parts * stretch, end = std::min(K, stretches * (part + 1) / parts * stretch);
      const int64_t slabs = ceilDiv(end - begin, stretch);
      const As<T, S> keys(queue.data<S>() + begin * D, (end - begin) * D);
      Panels<T> columns(1, D, end - begin);
      pack(columns, keys.data(), D, 0, 1);
      // As values they are packed by stretches, so that a stretch is one product.
      Scratch<T> values(dquery == nullptr ? 0 : slabs * panels * panelSize);
      if (dquery != nullptr)
        parallelFor(slabs * panels, [&](int64_t unit) {
          T* out = values.data() + unit * panelSize;
          const int64_t first = begin + unit / panels * stretch, column = unit % panels * mix.columns;
          for (int64_t k = first; k < first + stretch; ++k)
            for (int64_t j = 0; j < mix.columns; ++j, ++out)
              *out = k < end && column + j < D ? keys.data()[(k - begin) * D + column + j] : T{0};
        });
      parallelFor(blocks, [&](int64_t b) {
        const int64_t first = b * block, rows = rowsOf(b);
        Scratch<T> logits(block * stretch);
        const T* in[kMaxTileRows];
        T* out[kMaxTileRows];
        for (int64_t s = 0; s < slabs; ++s) {
          const int64_t length = std::min(stretch, end - begin - s * stretch);
          for (int64_t i = 0; i < rows; i += scores.rows) {
            const int valid = static_cast<int>(std::min<int64_t>(scores.rows, rows - i));
            for (int r = 0; r < scores.rows; ++r) in[r] = queries.data() + std::min(R - 1, first + i + r) * D;
            for (int64_t j = 0; j < length; j += columns.width) {
              for (int r = 0; r < valid; ++r) out[r] = logits.data() + (i + r) * stretch + j;
              const T* panel = columns.panel((s * stretch + j) / columns.width);
              scores.run({in, scores.rows, 1, 1, &tap, D, panel, out, valid, scores.columns, nullptr, false});
            }
          }
          for (int64_t i = 0; i < rows; ++i) {
            T *row = logits.data() + i * stretch, &most = maximum[first + i];
            T top = row[0];
            T rowSum{0};
            for (int64_t j = 0; j < length; ++j) {
              top = std::max(top, row[j]);
              rowSum += row[j];
            }
            negative[first + i] += rowSum;
            best[first + i] = std::max(best[first + i], top);
            if (top > most) {
              const T rescale = std::exp((most - top) * invT);
              sum[first + i] *= rescale;
              if (dquery != nullptr)
                for (int64_t c = 0; c < width; ++c) gradient[(first + i) * width + c] *= rescale;
              most = top;
            }
            T partSum;
            exponential(Exponential<T>{row, length, most, invT, &partSum});
            sum[first + i] += partSum;
            for (int64_t j = length; j < stretch; ++j) row[j] = T{0};
          }
          if (dquery == nullptr) continue;
          for (int64_t i = 0; i < rows; i += mix.rows) {
            const int valid = static_cast<int>(std::min<int64_t>(mix.rows, rows - i));
            for (int r = 0; r < mix.rows; ++r) in[r] = logits.data() + std::min(rows - 1, i + r) * stretch;
            for (int64_t p = 0; p < panels; ++p) {
              for (int r = 0; r < valid; ++r) out[r] = gradient.data() + (first + i + r) * width + p * mix.columns;
              const T* panel = values.data() + (s * panels + p) * panelSize;
              mix.run({in, mix.rows, 1, 1, &tap, stretch, panel, out, valid, mix.columns, nullptr, true});
            }
          }
        }
      });
    }

    std::vector<double> sums(blocks * 5);
    parallelFor(blocks, [&](int64_t b) {
      double* total = sums.data() + b * 5;
      for (int64_t i = b * block; i < b * block + rowsOf(b); ++i) {
        const T own0 = std::exp((own[i] - maximum[i]) * invT);
        const double logSum = std::log(static_cast<double>(sum[i])) + static_cast<double>(maximum[i]) * invT;
        total[0] += logSum - static_cast<double>(own[i]) * invT;
        total[1] += own[i];
        total[2] += negative[i] / static_cast<double>(K);
        total[3] += own[i] > best[i] ? 1 : 0;
        total[4] += logSum;
        if (dquery == nullptr) continue;
        const T scale = invT / static_cast<T>(R), inverse = T{1} / sum[i], p0 = own0 * inverse;
        const T* k = positives.data() + i * D;
        for (int64_t c = 0; c < D; ++c) dquery->data<S>()[i * D + c] = S(scale * ((p0 - T{1}) * k[c] + gradient[i * width + c] * inverse));
      }
    });
    double total[5] = {};
    for (int64_t b = 0; b < blocks; ++b)
      for (int i = 0; i < 5; ++i) total[i] += sums[b * 5 + i] / static_cast<double>(R);
    loss.data<T>()[0] = static_cast<T>(total[0]);
    for (int i = 0; i < 4; ++i) statistics.data<float>()[i] = static_cast<float>(total[i + 1]);
  });
}

//   loss = mean over the rows that are not ignored of log(sum e^logit) - logit[target], weighted by the weight of the target:
//   dlogits = weight (softmax - onehot) / total, with total the sum of the rows' weights
// A row that weighs 0 is ignored too. With every row ignored the loss is NaN, as in PyTorch.
void crossEntropy(const Call& call) {
  using Names = args::crossEntropy;
  const Tensor &loss = call.tensor(Names::loss), *dlogits = call.optional(Names::dlogits), &total = call.tensor(Names::total),
               &logits = call.tensor(Names::logits), &target = call.tensor(Names::target), *weight = call.optional(Names::weight);
  const int64_t R = logits.rows(), C = logits.columns(), ignore = call.integer(Names::ignoreIndex);
  dispatchFloat(call, logits.dtype, [&](auto zero) {
    using T = decltype(zero);
    std::vector<double> weights(R);
    double divisor = 0;
    for (int64_t r = 0; r < R; ++r) {
      const int32_t label = target.data<int32_t>()[r];
      if (label == ignore) continue;
      REQUIRE(label >= 0 && label < C, "RANGE",
              "crossEntropy: target " + std::to_string(label) + " is outside of " + std::to_string(C) + " classes");
      weights[r] = weight == nullptr ? 1 : static_cast<double>(weight->data<T>()[label]);
      divisor += weights[r];
    }
    total.data<T>()[0] = static_cast<T>(divisor);
    std::vector<double> sums(R);
    parallelRange(R, 64, [&](int64_t begin, int64_t end) {
      Scratch<T> line(ceilDiv(C, int64_t{kLossLanes}) * kLossLanes);
      crossEntropyRows(CrossEntropy<T>{logits.data<T>() + begin * C, dlogits == nullptr ? nullptr : dlogits->data<T>() + begin * C,
                                       target.data<int32_t>() + begin, weights.data() + begin, sums.data() + begin, end - begin, C, divisor,
                                       line.data()});
    });
    double sum = 0;
    for (double value : sums) sum += value;
    loss.data<T>()[0] = static_cast<T>(sum / divisor);
  });
}

void smoothL1(const Call& call) {
  using Names = args::smoothL1;
  pointwiseLoss(call, Names{}, call.number(Names::beta), [](const auto& job) { smoothL1Terms(job); });
}

void binaryCrossEntropy(const Call& call) {
  pointwiseLoss(call, args::binaryCrossEntropy{}, 0, [](const auto& job) { entropyTerms(job); });
}

}  // namespace densecl::cpu

// Batch norm over the rows of x [N, H, W, C] in G groups of the batch, with an optional residual and ReLU:
//   y = relu(gamma * (x - mean) / sqrt(var + eps) + beta + residual)
// Statistics: rows are cut into fixed chunks, each chunk gives (sum, squared deviations from its own mean), and the chunks
// are merged in order by T. Chan's formula in double: no cancellation, the same bits with any number of threads.
#include <cmath>
#include <vector>

#include "../core/parallel.h"
#include "../core/scratch.h"
#include "../core/windows.h"
#include "isa.h"
#include "ops.h"
#include "resultNorm.h"
#include "widen.h"

namespace densecl::cpu {
namespace {

int64_t chunkRows(int64_t channels) { return std::max<int64_t>(16, 16384 / std::max<int64_t>(1, channels)); }

template <class T>
struct Statistics {
  const T* x;
  int64_t rows, channels;
  Accumulator<T>* mean;  // (channels) of this chunk
  Accumulator<T>* m2;    // (channels) sum of squared deviations from mean
};

template <class T>
INLINE void statisticsLoop(const Statistics<T>& job) {
  using A = Accumulator<T>;
  A* __restrict mean = job.mean;
  A* __restrict m2 = job.m2;
  const int64_t C = job.channels;
  for (int64_t c = 0; c < C; ++c) mean[c] = m2[c] = 0;
  // The mean as the first row plus the mean distance to it: sums of values far from 0 would lose their last digits. Four
  // rows at a time: a sum is loaded and stored once for them.
  const T* base = job.x;
  int64_t r = 0;
  for (; r + 4 <= job.rows; r += 4) {
    const T* x = job.x + r * C;
    for (int64_t c = 0; c < C; ++c) {
      const A origin = base[c];
      mean[c] += ((x[c] - origin) + (x[C + c] - origin)) + ((x[2 * C + c] - origin) + (x[3 * C + c] - origin));
    }
  }
  for (; r < job.rows; ++r)
    for (int64_t c = 0; c < C; ++c) mean[c] += A(job.x[r * C + c]) - A(base[c]);
  const A scale = A{1} / static_cast<A>(job.rows);
  for (int64_t c = 0; c < C; ++c) mean[c] = A(base[c]) + mean[c] * scale;
  for (r = 0; r + 4 <= job.rows; r += 4) {
    const T* x = job.x + r * C;
    for (int64_t c = 0; c < C; ++c) {
      const A d0 = x[c] - mean[c], d1 = x[C + c] - mean[c], d2 = x[2 * C + c] - mean[c], d3 = x[3 * C + c] - mean[c];
      m2[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
    }
  }
  for (; r < job.rows; ++r)
    for (int64_t c = 0; c < C; ++c) {
      const A d = job.x[r * C + c] - mean[c];
      m2[c] += d * d;
    }
}
SIMD_LOOP_STORED(statistics, Statistics)

// x may be y: elements do not depend on each other.
template <class T>
INLINE void applyNormLoop(const NormRows<T>& job) {
  using A = Accumulator<T>;
  for (int64_t r = 0; r < job.rows; ++r) {
    const T* x = job.x + r * job.channels;
    T* y = job.y + r * job.channels;
    const T* residual = job.residual == nullptr ? nullptr : job.residual + r * job.channels;
    if (residual != nullptr && job.relu) {
#pragma GCC ivdep
      for (int64_t c = 0; c < job.channels; ++c) {
        const A z = x[c] * job.scale[c] + job.shift[c] + residual[c];
        y[c] = T(z < 0 ? A{0} : z);
      }
    } else if (residual != nullptr) {
#pragma GCC ivdep
      for (int64_t c = 0; c < job.channels; ++c) y[c] = T(x[c] * job.scale[c] + job.shift[c] + residual[c]);
    } else if (job.relu) {
#pragma GCC ivdep
      for (int64_t c = 0; c < job.channels; ++c) {
        const A z = x[c] * job.scale[c] + job.shift[c];
        y[c] = T(z < 0 ? A{0} : z);
      }
    } else {
#pragma GCC ivdep
      for (int64_t c = 0; c < job.channels; ++c) y[c] = T(x[c] * job.scale[c] + job.shift[c]);
    }
  }
}

// Where the ReLU of a norm let a value through: all of them without ReLU, y > 0, or, where y was not kept, x * scale + shift > 0.
template <class T>
struct Mask {
  const T* y;                   // null where it was not kept, and without ReLU
  const Accumulator<T>* scale;  // null unless it is asked instead of y
  const Accumulator<T>* shift;
};

// body(open) with what says of a channel of a row whether its value was let through: a loop of its own for each kind of mask.
template <class T, class F>
INLINE void forMask(const Mask<T>& mask, const T* x, const T* y, F body) {
  using A = Accumulator<T>;
  if (y != nullptr)
    body([=](int64_t c) { return y[c] > A{0}; });
  else if (mask.scale != nullptr)
    body([=, scale = mask.scale, shift = mask.shift](int64_t c) { return x[c] * scale[c] + shift[c] > A{0}; });
  else
    body([](int64_t) { return true; });
}

// dz = dy where the mask is open; sums of dz and dz * (x - mean) over the chunk.
template <class T>
struct Reduce {
  const T* dy;
  const T* x;
  Mask<T> mask;
  T* dz;  // null when not kept
  const Accumulator<T>* mean;
  Accumulator<T>* sum;
  Accumulator<T>* sumCentred;
  int64_t rows, channels;
};

template <class T>
INLINE void reduceLoop(const Reduce<T>& job) {
  using A = Accumulator<T>;
  A* __restrict sum = job.sum;
  A* __restrict sumCentred = job.sumCentred;
  const int64_t C = job.channels;
  for (int64_t c = 0; c < C; ++c) sum[c] = sumCentred[c] = 0;
  for (int64_t r = 0; r < job.rows; ++r) {
    const T* __restrict dy = job.dy + r * C;
    const T* __restrict x = job.x + r * C;
    T* dz = job.dz == nullptr ? nullptr : job.dz + r * C;
    // A mask by scale and shift reads so many arrays that the compiler would not ask whether they overlap.
    forMask(job.mask, x, job.mask.y == nullptr ? nullptr : job.mask.y + r * C, [&](auto open) {
#pragma GCC ivdep
      for (int64_t c = 0; c < C; ++c) {
        // What is read whether the mask is open or not is no branch.
        const A value = dy[c], d = open(c) ? value : A{0};
        sum[c] += d;
        sumCentred[c] += d * (x[c] - job.mean[c]);
      }
      if (dz == nullptr) return;
#pragma GCC ivdep
      for (int64_t c = 0; c < C; ++c) {
        const A value = dy[c];
        dz[c] = T(open(c) ? value : A{0});
      }
    });
  }
}
SIMD_LOOP_STORED(reduce, Reduce)

// dx = a * dz + b * (x - mean) + c per channel
template <class T>
struct Combine {
  T* dx;
  const T* dy;
  const T* x;
  Mask<T> mask;
  const Accumulator<T>* a;
  const Accumulator<T>* b;
  const Accumulator<T>* c;
  const Accumulator<T>* mean;
  int64_t rows, channels;
};

template <class T>
INLINE void combineLoop(const Combine<T>& job) {
  using A = Accumulator<T>;
  const int64_t C = job.channels;
  for (int64_t r = 0; r < job.rows; ++r) {
    T* __restrict dx = job.dx + r * C;
    const T* __restrict dy = job.dy + r * C;
    const T* __restrict x = job.x + r * C;
    forMask(job.mask, x, job.mask.y == nullptr ? nullptr : job.mask.y + r * C, [&](auto open) {
#pragma GCC ivdep
      for (int64_t c = 0; c < C; ++c) {
        const A value = dy[c];
        dx[c] = T(job.a[c] * (open(c) ? value : A{0}) + (job.b[c] * (x[c] - job.mean[c]) + job.c[c]));
      }
    });
  }
}
SIMD_LOOP_STORED(combine, Combine)

struct Chunks {
  int64_t channels, groupRows, groups, perGroup, length;
  Chunks(const Tensor& x, int64_t groups)
      : channels(x.columns()), groupRows(x.rows() / groups), groups(groups), length(chunkRows(channels)) {
    perGroup = (groupRows + length - 1) / length;
  }
  int64_t count() const { return groups * perGroup; }
  int64_t group(int64_t chunk) const { return chunk / perGroup; }
  int64_t first(int64_t chunk) const { return group(chunk) * groupRows + chunk % perGroup * length; }
  int64_t rows(int64_t chunk) const { return std::min(length, groupRows - chunk % perGroup * length); }
};

template <class T>
const T* offset(const Tensor* tensor, int64_t elements) {
  return tensor == nullptr ? nullptr : tensor->data<T>() + elements;
}

}  // namespace

SIMD_LOOP_STORED(applyNorm, NormRows)

// The running statistics take the mean over the groups of each group's mean and unbiased variance.
void batchNormTrain(const Call& call) {
  using Names = args::batchNormTrain;
  const Tensor *y = call.optional(Names::y), &mean = call.tensor(Names::mean), &invstd = call.tensor(Names::invstd),
               &runningMean = call.tensor(Names::runningMean), &runningVar = call.tensor(Names::runningVar), &x = call.tensor(Names::x),
               *residual = call.optional(Names::residual), *scaleOut = call.optional(Names::scale), *shiftOut = call.optional(Names::shift);
  REQUIRE(call.optional(Names::statistics) == nullptr, "ARGUMENT", "batchNormTrain: expected no statistics on the CPU");
  REQUIRE(call.optional(Names::residualScale) == nullptr, "ARGUMENT", "batchNormTrain: expected no residualScale on the CPU");
  const int64_t groups = groupsOf(call, "mean", mean, x);
  const double eps = call.number(Names::eps), momentum = call.number(Names::momentum);
  const bool relu = call.flag(Names::relu);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Chunks chunks(x, groups);
    const int64_t C = chunks.channels;
    Scratch<A> partial(chunks.count() * 2 * C);
    parallelFor(chunks.count(), [&](int64_t k) {
      A* out = partial.data() + k * 2 * C;
      statistics(Statistics<T>{x.data<T>() + chunks.first(k) * C, chunks.rows(k), C, out, out + C});
    });

    Scratch<A> scale(groups * C), shift(groups * C);
    std::vector<double> meanSum(C), varSum(C), m(C), m2(C);
    for (int64_t g = 0; g < groups; ++g) {
      double rows = 0;
      for (int64_t k = g * chunks.perGroup; k < (g + 1) * chunks.perGroup; ++k) {
        const double n = static_cast<double>(chunks.rows(k)), total = rows + n;
        const A* part = partial.data() + k * 2 * C;
        for (int64_t c = 0; c < C; ++c) {
          const double delta = rows == 0 ? 0 : part[c] - m[c];
          m[c] = rows == 0 ? part[c] : m[c] + delta * n / total;
          m2[c] = (rows == 0 ? 0 : m2[c]) + part[C + c] + delta * delta * rows * n / total;
        }
        rows = total;
      }
      for (int64_t c = 0; c < C; ++c) {
        mean.data<A>()[g * C + c] = static_cast<A>(m[c]);
        invstd.data<A>()[g * C + c] = static_cast<A>(1 / std::sqrt(m2[c] / rows + eps));
        meanSum[c] += m[c] / static_cast<double>(groups);
        varSum[c] += m2[c] / std::max(1.0, rows - 1) / static_cast<double>(groups);
      }
      affine(C, call.tensor(Names::weight).data<A>(), call.tensor(Names::bias).data<A>(), mean.data<A>() + g * C, invstd.data<A>() + g * C,
             scale.data() + g * C, shift.data() + g * C);
    }
    for (int64_t c = 0; c < C; ++c) {
      A &rm = runningMean.data<A>()[c], &rv = runningVar.data<A>()[c];
      rm = static_cast<A>((1 - momentum) * rm + momentum * meanSum[c]);
      rv = static_cast<A>((1 - momentum) * rv + momentum * varSum[c]);
    }
    if (scaleOut != nullptr) std::copy_n(scale.data(), groups * C, scaleOut->data<A>());
    if (shiftOut != nullptr) std::copy_n(shift.data(), groups * C, shiftOut->data<A>());
    if (y == nullptr) return;

    parallelFor(chunks.count(), [&](int64_t k) {
      const int64_t at = chunks.first(k) * C, g = chunks.group(k) * C;
      applyNorm(NormRows<T>{y->data<T>() + at, x.data<T>() + at, scale.data() + g, shift.data() + g, offset<T>(residual, at), relu,
                            chunks.rows(k), C});
    });
  });
}

void batchNormEval(const Call& call) {
  using Names = args::batchNormEval;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), *residual = call.optional(Names::residual);
  const bool relu = call.flag(Names::relu);
  const double eps = call.number(Names::eps);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Chunks chunks(x, 1);
    const int64_t C = chunks.channels;
    const A* variance = call.tensor(Names::variance).data<A>();
    A* invstd = call.tensor(Names::invstd).data<A>();
    for (int64_t c = 0; c < C; ++c) invstd[c] = static_cast<A>(1 / std::sqrt(static_cast<double>(variance[c]) + eps));
    Scratch<A> scale(C), shift(C);
    affine(C, call.tensor(Names::weight).data<A>(), call.tensor(Names::bias).data<A>(), call.tensor(Names::mean).data<A>(), invstd,
           scale.data(), shift.data());
    parallelFor(chunks.count(), [&](int64_t k) {
      const int64_t at = chunks.first(k) * C;
      applyNorm(
          NormRows<T>{y.data<T>() + at, x.data<T>() + at, scale.data(), shift.data(), offset<T>(residual, at), relu, chunks.rows(k), C});
    });
  });
}

//   dweight = sum dz * xhat, dbias = sum dz, with xhat = (x - mean) * invstd
//   dx = weight * invstd * (dz - [train] (mean(dz) + xhat * mean(dz * xhat)))
void batchNormBackward(const Call& call) {
  using Names = args::batchNormBackward;
  const Tensor *dx = call.optional(Names::dx), &dweight = call.tensor(Names::dweight), &dbias = call.tensor(Names::dbias),
               *dz = call.optional(Names::dz), &dy = call.tensor(Names::dy), &x = call.tensor(Names::x), *y = call.optional(Names::y);
  REQUIRE(dx != nullptr, "ARGUMENT", "batchNormBackward: expected dx on the CPU");
  REQUIRE(call.optional(Names::sums) == nullptr, "ARGUMENT", "batchNormBackward: expected no sums on the CPU");
  const int64_t groups = groupsOf(call, "mean", call.tensor(Names::mean), x);
  const bool train = call.flag(Names::train);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Chunks chunks(x, groups);
    const int64_t C = chunks.channels;
    const A *weight = call.tensor(Names::weight).data<A>(), *mean = call.tensor(Names::mean).data<A>(),
            *invstd = call.tensor(Names::invstd).data<A>();
    const auto maskOf = [&](int64_t k) {
      const int64_t at = chunks.first(k) * C, g = chunks.group(k) * C;
      return Mask<T>{offset<T>(y, at), offset<A>(call.optional(Names::scale), g), offset<A>(call.optional(Names::shift), g)};
    };
    Scratch<A> partial(chunks.count() * 2 * C);
    parallelFor(chunks.count(), [&](int64_t k) {
      const int64_t at = chunks.first(k) * C;
      A* out = partial.data() + k * 2 * C;
      reduce(Reduce<T>{dy.data<T>() + at, x.data<T>() + at, maskOf(k), const_cast<T*>(offset<T>(dz, at)), mean + chunks.group(k) * C, out,
                       out + C, chunks.rows(k), C});
    });

    Scratch<A> a(groups * C), b(groups * C), c0(groups * C);
    std::vector<double> weightSum(C), biasSum(C), sum(C), centred(C);
    for (int64_t g = 0; g < groups; ++g) {
      std::fill(sum.begin(), sum.end(), 0);
      std::fill(centred.begin(), centred.end(), 0);
      for (int64_t k = g * chunks.perGroup; k < (g + 1) * chunks.perGroup; ++k)
        for (int64_t c = 0; c < C; ++c) {
          sum[c] += partial[k * 2 * C + c];
          centred[c] += partial[k * 2 * C + C + c];
        }
      const double rows = static_cast<double>(chunks.groupRows);
      for (int64_t c = 0; c < C; ++c) {
        const int64_t i = g * C + c;
        const double inv = invstd[i], scale = weight[c] * inv;
        weightSum[c] += centred[c] * inv;
        biasSum[c] += sum[c];
        // scale * (dz - sum/rows - (x - mean) * inv^2 * centred/rows); the mean is not folded in: it would cancel
        a[i] = static_cast<A>(scale);
        b[i] = static_cast<A>(train ? -scale * inv * inv * centred[c] / rows : 0);
        c0[i] = static_cast<A>(train ? -scale * sum[c] / rows : 0);
      }
    }
    for (int64_t c = 0; c < C; ++c) {
      dweight.data<A>()[c] = static_cast<A>(weightSum[c]);
      dbias.data<A>()[c] = static_cast<A>(biasSum[c]);
    }
    // Where dz is kept, reading it saves the mask.
    const Tensor& source = dz == nullptr ? dy : *dz;
    parallelFor(chunks.count(), [&](int64_t k) {
      const int64_t at = chunks.first(k) * C, g = chunks.group(k) * C;
      combine(Combine<T>{dx->data<T>() + at, source.data<T>() + at, x.data<T>() + at, dz == nullptr ? maskOf(k) : Mask<T>{}, a.data() + g,
                         b.data() + g, c0.data() + g, mean + g, chunks.rows(k), C});
    });
  });
}

// y = relu(x * scale + shift): what a deferred batch norm stands for (src/ops/fusion.ts)
void normApply(const Call& call) {
  using Names = args::normApply;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &scale = call.tensor(Names::scale),
               &shift = call.tensor(Names::shift);
  const int64_t groups = groupsOf(call, "scale", scale, x);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Chunks chunks(x, groups);
    parallelFor(chunks.count(), [&](int64_t k) {
      const int64_t at = chunks.first(k) * chunks.channels, g = chunks.group(k) * chunks.channels;
      applyNorm(NormRows<T>{y.data<T>() + at, x.data<T>() + at, scale.data<A>() + g, shift.data<A>() + g, nullptr, call.flag(Names::relu),
                            chunks.rows(k), chunks.channels});
    });
  });
}

// y = relu(x * scale + shift + residual), of which y and the residual are in E4M3 or bf16
void normE4m3(const Call& call) {
  using Names = args::normE4m3;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &scale = call.tensor(Names::scale),
               &shift = call.tensor(Names::shift), *residual = call.optional(Names::residual);
  REQUIRE(call.optional(Names::residualScale) == nullptr && call.optional(Names::residualShift) == nullptr, "ARGUMENT",
          "normE4m3: expected no residualScale and residualShift on the CPU");
  const auto inE4m3 = [](const char* name, const Tensor& tensor) {
    REQUIRE(tensor.dtype == DType::e4m3 || tensor.dtype == DType::bf16, "DTYPE",
            std::string("normE4m3: expected ") + name + " of e4m3 or bf16 but received " + describe(tensor));
    return tensor.dtype == DType::e4m3;
  };
  const bool rounds = inE4m3("y", y), widens = residual != nullptr && inE4m3("residual", *residual);
  const Chunks chunks(x, groupsOf(call, "scale", scale, x));
  parallelFor(chunks.count(), [&](int64_t k) {
    const int64_t rows = chunks.rows(k), count = rows * chunks.channels, at = chunks.first(k) * chunks.channels,
                  g = chunks.group(k) * chunks.channels;
    Scratch<float> values(static_cast<size_t>(count)), added(residual == nullptr ? 0 : static_cast<size_t>(count));
    widen(values.data(), x.data<bf16>() + at, count);
    if (widens)
      widen(added.data(), residual->data<e4m3>() + at, count);
    else if (residual != nullptr)
      widen(added.data(), residual->data<bf16>() + at, count);
    applyNorm(NormRows<float>{values.data(), values.data(), scale.data<float>() + g, shift.data<float>() + g,
                              residual == nullptr ? nullptr : added.data(), call.flag(Names::relu), rows, chunks.channels});
    if (rounds)
      narrow(y.data<e4m3>() + at, values.data(), count);
    else
      narrow(y.data<bf16>() + at, values.data(), count);
  });
}

// dx = a dz + (b (x - mean) + c) with the coefficients a, b, c
void normGradient(const Call& call) {
  using Names = args::normGradient;
  const Tensor &dx = call.tensor(Names::dx), &dz = call.tensor(Names::dz), &x = call.tensor(Names::x), &mean = call.tensor(Names::mean);
  const int64_t groups = groupsOf(call, "mean", mean, x);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Chunks chunks(x, groups);
    const A* abc = call.tensor(Names::coefficients).data<A>();
    parallelFor(chunks.count(), [&](int64_t k) {
      const int64_t at = chunks.first(k) * chunks.channels, g = chunks.group(k) * chunks.channels, plane = groups * chunks.channels;
      combine(Combine<T>{dx.data<T>() + at, dz.data<T>() + at, x.data<T>() + at, Mask<T>{}, abc + g, abc + plane + g, abc + 2 * plane + g,
                         mean.data<A>() + g, chunks.rows(k), chunks.channels});
    });
  });
}

// The sum over all rows of x (a bias gradient).
void sumRows(const Call& call) {
  const Tensor &out = call.tensor(args::sumRows::sum), &x = call.tensor(args::sumRows::x);
  dispatchStored(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    const Chunks chunks(x, 1);
    const int64_t C = chunks.channels;
    Scratch<A> partial(chunks.count() * C);
    parallelFor(chunks.count(), [&](int64_t k) {
      A* sum = partial.data() + k * C;
      for (int64_t c = 0; c < C; ++c) sum[c] = 0;
      const T* row = x.data<T>() + chunks.first(k) * C;
      for (int64_t r = 0; r < chunks.rows(k); ++r, row += C)
        for (int64_t c = 0; c < C; ++c) sum[c] += row[c];
    });
    std::vector<double> total(C);
    for (int64_t k = 0; k < chunks.count(); ++k)
      for (int64_t c = 0; c < C; ++c) total[c] += partial[k * C + c];
    for (int64_t c = 0; c < C; ++c) out.data<A>()[c] = static_cast<A>(total[c]);
  });
}

}  // namespace densecl::cpu

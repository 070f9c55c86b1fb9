// A convolution of maps in E4M3 on Hopper's tensor cores: half the bytes of bf16, and twice its rate. Weights are rounded first.
#include "conv2dHopper.h"
#include "kernel/reduce.cuh"
#include "kernel/warpgroup.cuh"
#include "ops.h"

namespace densecl::cuda {
namespace {

// A warp for each output, whose weights are divided by its scale.
__global__ void __launch_bounds__(kThreads) roundWeightsKernel(const bf16* weights, e4m3* rounded, float* scale, int outputs, int depth) {
  constexpr int kVector = Vector<bf16>::kLength;
  const int output = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + warpIndex();
  if (output >= outputs) return;
  const int64_t begin = static_cast<int64_t>(output) * depth;
  const auto each = [&](auto body) {
    for (int at = laneIndex() * kVector; at < depth; at += kWarp * kVector) {
      float values[kVector];
      unpack(values, loadWords(weights + begin + at));
      body(values, begin + at);
    }
  };
  float most = 0;
  each([&](const float (&values)[kVector], int64_t) {
    for (float value : values) most = fmaxf(most, fabsf(value));
  });
  const int exponent = rowExponent(warpMax(most));
  const float factor = powerOfTwo(-exponent);
  each([&](float (&values)[kVector], int64_t at) {
    for (float& value : values) value *= factor;
    storeRounded(rounded + at, values);
  });
  if (laneIndex() == 0) scale[output] = powerOfTwo(exponent);
}

}  // namespace

void conv2dE4m3(const Call& call) {
  using Names = args::conv2dE4m3;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &weight = call.tensor(Names::weight),
               *statistics = call.optional(Names::statistics);
  const Geometry g(call, Convolution<int>(call, Names{}, x, weight, y, "y"), call.integer(Names::tile), false);
  if (statistics != nullptr) requireChunks(call, "statistics", *statistics, ceilDiv(g.pixels(), kStatisticsRows));
  const auto expect = [&](bool holds) {
    REQUIRE(
        holds, "DEVICE",
        "conv2dE4m3: expected a GPU of compute capability 9.0, channels by the 128, strides of at most 8 and no tile 7 but received x " +
            describe(x) + " and weight " + describe(weight) + " on " + call.device().name);
  };
  expect(g.c % (2 * kLineElements) == 0);
  DeviceScratch<e4m3> rounded(call, weight.size());
  DeviceScratch<float> scale(call, g.o);
  launch(call, roundWeightsKernel, Grid{ceilDiv(g.o, kThreads / kWarp)}, kThreads, 0, weight.data<bf16>(), rounded.data(), scale.data(),
         static_cast<int>(g.o), static_cast<int>(g.depth()));
  expect(forwardE4m3Hopper(call, g, x.data<e4m3>(), rounded.data(), scale.data()));
}

}  // namespace densecl::cuda

#include "widen.h"

#include <array>
#include <deque>

#include "../core/device.h"
#include "../core/parallel.h"
#include "../core/scratch.h"
#include "isa.h"
#include "math.h"

namespace densecl::cpu {
namespace {

constexpr int64_t kGrain = 1 << 15;

SIMD(void, widenBits, (float* __restrict out, const uint16_t* __restrict in, int64_t count), (out, in, count)) {
  for (int64_t i = 0; i < count; ++i) out[i] = floatOf(static_cast<uint32_t>(in[i]) << 16);
}
SIMD(void, roundBits, (uint16_t* __restrict out, const float* __restrict in, int64_t count), (out, in, count)) {
  for (int64_t i = 0; i < count; ++i) out[i] = roundedBits(in[i]);
}
}  // namespace

void widen(float* out, const bf16* in, int64_t count) { widenBits(out, reinterpret_cast<const uint16_t*>(in), count); }
void narrow(bf16* out, const float* in, int64_t count) { roundBits(reinterpret_cast<uint16_t*>(out), in, count); }

// Numbers of E4M3 are few, and all are numbers of bf16.
void widen(bf16* out, const e4m3* in, int64_t count) {
  static const std::array<bf16, 256> numbers = [] {
    std::array<bf16, 256> all;
    for (size_t bits = 0; bits < all.size(); ++bits) {
      e4m3 number;
      number.bits = static_cast<uint8_t>(bits);
      all[bits] = bf16(static_cast<float>(number));
    }
    return all;
  }();
  for (int64_t i = 0; i < count; ++i) out[i] = numbers[in[i].bits];
}
void widen(float* out, const e4m3* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
}
void narrow(e4m3* out, const float* in, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = e4m3(in[i]);
}

bool needsWidening(const Call& call) {
  switch (static_cast<OpIndex>(call.index)) {
    // What moves values as they are, and what has loops of its own.
    case OpIndex::fill:
    case OpIndex::convert:
    case OpIndex::copyStrided:
    case OpIndex::gatherRows:
    case OpIndex::add:
    case OpIndex::relu:
    case OpIndex::reluBackward:
    case OpIndex::batchNormTrain:
    case OpIndex::batchNormEval:
    case OpIndex::batchNormBackward:
    case OpIndex::normApply:
    case OpIndex::normGradient:
    case OpIndex::sumRows:
    case OpIndex::maxPool2d:
    case OpIndex::conv2d:
    case OpIndex::conv2dNorm:
    case OpIndex::conv2dE4m3:
    case OpIndex::normE4m3:
    case OpIndex::conv2dBackwardInput:
    case OpIndex::conv2dBackwardWeight:
    case OpIndex::matmul:
    case OpIndex::enqueue:
    case OpIndex::infoNce:
    case OpIndex::augment:
    case OpIndex::checkFinite:
    // Optimisers have bf16 as copies; what they update is refused in it.
    case OpIndex::sgd:
    case OpIndex::adam:
    case OpIndex::lars:
    case OpIndex::ema:
    case OpIndex::clipByGlobalNorm: return false;
    default: break;
  }
  for (const Tensor* tensor : call.tensors)
    if (tensor != nullptr && tensor->dtype == DType::bf16) return true;
  return false;
}

void runWidened(OpFunction op, const Call& call) {
  const Signature& signature = signatures()[static_cast<size_t>(call.index)];
  Call wide = call;
  std::deque<Scratch<float>> memory;
  std::deque<Tensor> copies;
  std::vector<std::pair<const Tensor*, const Tensor*>> results;  // a tensor of the call and its copy
  for (size_t p = 0; p < signature.tensors.size(); ++p)
    for (uint32_t k = call.firstTensor[p]; k < call.firstTensor[p + 1]; ++k) {
      const Tensor* tensor = call.tensors[k];
      if (tensor == nullptr || tensor->dtype != DType::bf16) continue;
      const auto size = static_cast<size_t>(tensor->size());
      auto storage = std::make_shared<Storage>(cpuDevice(), size * sizeof(float), memory.emplace_back(size).data());
      const Tensor& copy = copies.emplace_back(Tensor{std::move(storage), DType::f32, tensor->shape});
      if (signature.tensors[p].written)
        results.push_back({tensor, &copy});
      else
        parallelRange(tensor->size(), kGrain,
                      [&](int64_t begin, int64_t end) { widen(copy.data<float>() + begin, tensor->data<bf16>() + begin, end - begin); });
      wide.tensors[k] = &copy;
    }
  op(wide);
  for (const auto& pair : results)
    parallelRange(pair.first->size(), kGrain, [&](int64_t begin, int64_t end) {
      narrow(pair.first->data<bf16>() + begin, pair.second->data<float>() + begin, end - begin);
    });
}

}  // namespace densecl::cpu

#include "stepCalls.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "device.h"

namespace densecl {
namespace {

bool same(double a, double b) { return a == b || (a != a && b != b); }

std::string text(double number) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.17g", number);
  double read = 0;
  for (int precision = 6; precision < 17 && !same(read, number); ++precision) {
    std::snprintf(digits, sizeof digits, "%.*g", precision, number);
    read = std::strtod(digits, nullptr);
  }
  return digits;
}

// The parameter that position `k` of a call belongs to.
size_t parameterOf(const std::vector<uint32_t>& first, size_t k) {
  return static_cast<size_t>(std::upper_bound(first.begin(), first.end(), static_cast<uint32_t>(k)) - first.begin()) - 1;
}

}  // namespace

StepCalls::~StepCalls() {
  for (const auto& each : others_) --each.second.storage->steps;
}

StepCalls::Noted StepCalls::noted(const Call& call) const {
  Noted noted{call.index, call.numbers, call.firstNumber, call.firstTensor, {}};
  for (const Tensor* tensor : call.tensors) {
    Operand& operand = noted.operands.emplace_back();
    if (tensor == nullptr) continue;
    const size_t block = device_.allocator.blockOfRun(tensor->raw());
    operand = {true, tensor->dtype, tensor->shape, block, {}};
    if (block == Allocator::kUnplanned) operand.from = tensor->storage;
  }
  return noted;
}

void StepCalls::note(const Call& call) {
  if (&call.device() == &device_) calls_.push_back(noted(call));
}

void StepCalls::refuse(const std::string& message) {
  differs_ = true;
  throw Error("GRAPH", "graph: " + message);
}

void StepCalls::compare(const Call& call) {
  const std::string op = call.op;
  if (&call.device() != &device_)
    refuse("expected ops on " + device_.name + ", where the step is recorded, but received " + op + " on " + call.device().name +
           ", which would not be repeated");
  if (at_ == calls_.size()) refuse("expected the recorded run to end, as the run before it, but received " + op);
  const Noted now = noted(call);
  const Noted& before = calls_[at_++];
  const Signature& signature = signatures()[static_cast<size_t>(call.index)];
  if (before.op != now.op)
    refuse("expected the recorded run to call " + std::string(signatures()[static_cast<size_t>(before.op)].name) +
           ", as the run before it, but received " + op);
  if (before.firstNumber != now.firstNumber || before.firstTensor != now.firstTensor)
    refuse("expected " + op + " to be called with lists as long as in the run before but received others");
  for (size_t k = 0; k < now.numbers.size(); ++k)
    if (!same(before.numbers[k], now.numbers[k]))
      refuse("expected " + op + " to be called with " + signature.numbers[parameterOf(now.firstNumber, k)].name + " " +
             text(before.numbers[k]) + ", as in the run before, but received " + text(now.numbers[k]) +
             ": a recorded step keeps its numbers; what changes from run to run lies in tensors");
  for (size_t k = 0; k < now.operands.size(); ++k) {
    const Operand &was = before.operands[k], &is = now.operands[k];
    const std::string name = signature.tensors[parameterOf(now.firstTensor, k)].name;
    const auto shown = [](const Operand& operand) {
      return operand.given ? describe(Tensor{nullptr, operand.dtype, operand.shape}) : std::string("none");
    };
    if (was.given != is.given || (is.given && (was.dtype != is.dtype || was.shape != is.shape)))
      refuse("expected " + op + " to be called with " + name + " " + shown(was) + ", as in the run before, but received " + shown(is));
    const bool others = is.given && is.block == Allocator::kUnplanned;
    if (was.block != is.block || (others && was.from.lock() != call.tensors[k]->storage))
      refuse("expected " + op + " to be called with the tensor " + name + " " + shown(was) +
             " of the run before but received another one: what changes from run to run is written into the same tensors");
    if (!others) continue;
    const std::shared_ptr<Storage>& storage = call.tensors[k]->storage;
    if (others_.emplace(storage.get(), Other{storage, name + " " + shown(is) + " of " + op}).second) ++storage->steps;
  }
}

void StepCalls::finish() const {
  if (differs_ || at_ != calls_.size())
    throw Error("GRAPH", "graph: expected the recorded run to make the " + std::to_string(calls_.size()) +
                             " calls of the run before it but received " + (differs_ ? "others" : std::to_string(at_)));
}

void StepCalls::expectTensors() const {
  for (const auto& [storage, other] : others_)
    if (static_cast<size_t>(other.storage.use_count()) == storage->steps)
      throw Error("GRAPH", "graph: expected the tensor " + other.name +
                               " to live as long as the step that was recorded with it, but it has been disposed; "
                               "dispose the graph too, and its next run begins anew");
}

}  // namespace densecl

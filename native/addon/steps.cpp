#include "steps.h"

namespace densecl {
namespace {

constexpr size_t kMaxReads = 4096, kMaxReadBytes = size_t{1} << 30;

}  // namespace

// An environment that ends in the middle of a step, as that of a worker that is terminated, leaves none to the device.
Steps::~Steps() {
  while (!steps_.empty()) end(steps_.begin()->first);
}

uint32_t Steps::begin(Device& device) {
  expectNone();
  Arena* arena = device.allocator.startTrace();
  Step& step = steps_[++last_];
  step.device = &device;
  step.calls = std::make_unique<StepCalls>(device);
  step.arena = arena;
  current_ = &step;
  return last_;
}

void Steps::expectNone() const {
  REQUIRE(current_ == nullptr, "GRAPH", "graph: another step is being recorded on " + current_->device->name);
}

void Steps::called(const Call& call) {
  if (current_ == nullptr) return;
  if (current_->open)
    current_->calls->compare(call);
  else
    current_->calls->note(call);
}

Steps::Step& Steps::find(uint32_t ticket) {
  const auto found = steps_.find(ticket);
  REQUIRE(found != steps_.end(), "INTERNAL", "graph: there is no such step");
  return found->second;
}

void Steps::endTrace(uint32_t ticket) {
  Step& step = find(ticket);
  REQUIRE(step.tracing, "GRAPH", "graph: the trace of this step has ended");
  step.tracing = false;
  current_ = nullptr;
  step.device->allocator.endTrace();
  step.traced = true;
}

void Steps::startRecording(uint32_t ticket) {
  Step& step = find(ticket);
  REQUIRE(step.traced, "GRAPH", "graph: a step is recorded once, after its trace");
  REQUIRE(step.device->traits().recordable, "GRAPH", step.device->name + " records no work");
  expectNone();
  step.traced = false;
  step.device->synchronize();
  step.device->allocator.startServing(step.arena);
  step.device->beginRecording();
  step.open = true;
  current_ = &step;
}

Steps::Planned Steps::endRecording(uint32_t ticket) {
  Step& step = find(ticket);
  REQUIRE(step.open, "GRAPH", "graph: this step is not being recorded");
  step.open = false;
  current_ = nullptr;
  step.recording = step.device->endRecording();
  step.calls->finish();
  step.device->allocator.endServing();
  return {static_cast<size_t>(step.recording->launches()), &step.arena->plan};
}

void Steps::replay(uint32_t ticket) {
  const Step& step = find(ticket);
  REQUIRE(step.recording != nullptr, "GRAPH", "graph: this step has not been recorded");
  step.calls->expectTensors();
  step.recording->replay();
}

void Steps::end(uint32_t ticket) {
  Step& step = find(ticket);
  if (current_ == &step) current_ = nullptr;
  try {
    if (step.open) step.recording = step.device->endRecording();
  } catch (const Error&) {
    // A recording that was broken off: what broke it has been reported.
  }
  // Before what it names.
  step.recording.reset();
  step.device->allocator.abandon(step.arena);
  steps_.erase(ticket);
}

uint32_t Reads::start(const Tensor& tensor) {
  const size_t bytes = tensor.size() * itemSize(tensor.dtype);
  REQUIRE(reads_.size() < kMaxReads && (reads_.empty() || waiting_ + bytes <= kMaxReadBytes), "OUT_OF_MEMORY",
          "startRead: " + std::to_string(reads_.size()) + " reads of " + std::to_string(waiting_) +
              " bytes have been started and not finished: finish them");
  reads_[++last_] = {tensor.storage->device.startDownload(tensor.raw(), bytes), bytes};
  waiting_ += bytes;
  return last_;
}

void Reads::finish(uint32_t ticket, void* to, size_t bytes) {
  const auto found = reads_.find(ticket);
  REQUIRE(found != reads_.end(), "INTERNAL", "finishRead: there is no such read");
  REQUIRE(bytes == found->second.bytes, "SHAPE",
          "finishRead: expected an array of " + std::to_string(found->second.bytes) + " bytes but received " + std::to_string(bytes));
  const std::unique_ptr<Download> download = std::move(found->second.download);
  waiting_ -= bytes;
  reads_.erase(found);
  download->finish(to);
}

}  // namespace densecl

// Work of one JavaScript environment that goes on between calls, by tickets: steps that are recorded and replayed, and reads beside other
// work. Both stay until they are ended, so there is a limit to the reads.
#pragma once
#include <map>
#include <memory>

#include "../core/device.h"
#include "../core/stepCalls.h"

namespace densecl {

// A step on a device: run (begin, endTrace), recorded with planned memory (startRecording, endRecording), replayed, and given up (end).
class Steps {
 public:
  struct Planned {
    size_t launches;
    const Plan* plan;
  };
  Steps() = default;
  ~Steps();
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;
  uint32_t begin(Device& device);
  void endTrace(uint32_t ticket);
  void startRecording(uint32_t ticket);
  Planned endRecording(uint32_t ticket);
  void replay(uint32_t ticket);
  // Of every op that is called, before it is run: may throw where a step is recorded.
  void called(const Call& call);
  // At any point.
  void end(uint32_t ticket);

 private:
  struct Step {
    Device* device;
    std::unique_ptr<StepCalls> calls;
    Arena* arena = nullptr;
    std::unique_ptr<Recording> recording;
    bool tracing = true;  // between begin and endTrace
    bool traced = false;  // and after it, until startRecording
    bool open = false;    // between startRecording and endRecording
  };
  Step& find(uint32_t ticket);
  void expectNone() const;

  std::map<uint32_t, Step> steps_;
  Step* current_ = nullptr;  // the one that is traced or recorded now
  uint32_t last_ = 0;
};

// Copies to the host that have been started and not finished.
class Reads {
 public:
  uint32_t start(const Tensor& tensor);
  void finish(uint32_t ticket, void* to, size_t bytes);

 private:
  struct Read {
    std::unique_ptr<Download> download;
    size_t bytes;
  };
  std::map<uint32_t, Read> reads_;
  size_t waiting_ = 0;  // bytes of reads_
  uint32_t last_ = 0;
};

}  // namespace densecl

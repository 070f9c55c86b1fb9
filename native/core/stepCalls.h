// The calls of a step that is recorded: its numbers and tensors are those of all replays, so the run that is traced and the run that is
// recorded must make the same calls, and the tensors of others that they name must live as long as the step is replayed.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "call.h"

namespace densecl {

class StepCalls {
 public:
  explicit StepCalls(Device& device) : device_(device) {}
  ~StepCalls();
  StepCalls(const StepCalls&) = delete;
  StepCalls& operator=(const StepCalls&) = delete;

  // A call of the run that is traced.
  void note(const Call& call);
  // A call of the run that is recorded. Throws GRAPH, with the names of op and parameter, when it is not that of the trace.
  void compare(const Call& call);
  // Throws GRAPH when the runs have made other calls than each other.
  void finish() const;
  // Before a replay: throws GRAPH when nobody but recorded steps has a tensor any more that it names.
  void expectTensors() const;

 private:
  struct Operand {
    bool given = false;
    DType dtype{};
    std::vector<int64_t> shape;
    size_t block = 0;             // of the plan, or Allocator::kUnplanned
    std::weak_ptr<Storage> from;  // where it is not planned
  };
  struct Noted {
    int op;
    std::vector<double> numbers;
    std::vector<uint32_t> firstNumber, firstTensor;
    std::vector<Operand> operands;
  };
  struct Other {
    std::shared_ptr<Storage> storage;
    std::string name;
  };
  Noted noted(const Call& call) const;
  [[noreturn]] void refuse(const std::string& message);

  Device& device_;
  std::vector<Noted> calls_;
  size_t at_ = 0;  // of the run that is recorded
  bool differs_ = false;
  std::unordered_map<const Storage*, Other> others_;
};

}  // namespace densecl

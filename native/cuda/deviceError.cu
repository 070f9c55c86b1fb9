#include "runtime.h"

namespace densecl::cuda {

void throwReport(const Report& report) {
  const std::string value = std::to_string(report.value), bound = std::to_string(report.bound);
  switch (report.code) {
    case 0: return;
    case kGatherIndex: throw Error("RANGE", "gatherRows: index " + value + " is outside of " + bound + " rows");
    case kTarget: throw Error("RANGE", "crossEntropy: target " + value + " is outside of " + bound + " classes");
    case kQueuePointer: throw Error("RANGE", "enqueue: the pointer " + value + " is outside of a queue of " + bound);
    case kBlurRadius:
      throw Error("RANGE", "augment: a blur that reaches " + value + " pixels: expected at most " + bound + ", a standard deviation of 21");
    case kBoxImage: throw Error("RANGE", "roiAlign: image " + value + " of a box is outside of " + bound + " images");
    default: throw Error("INTERNAL", "a kernel reported the unknown code " + std::to_string(report.code));
  }
}

}  // namespace densecl::cuda

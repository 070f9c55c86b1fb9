#include "kernelDevice.h"

#include <cstdlib>
#include <cstring>

#include "kernel/reduce.cuh"
#include "runtime.h"

namespace densecl::cuda {
namespace {

const char* const kFamilyNames[] = {
#define FAMILY(identifier, name) name,
#include "families.def"
#undef FAMILY
};
constexpr size_t kFamilies = sizeof(kFamilyNames) / sizeof(kFamilyNames[0]);
static_assert(kFamilies <= 32, "the set of avoided families is a word");

// An upper bound from the environment; `most` where it is not set.
int bounded(int most, const char* variable, int least, const char* expected) {
  const char* text = std::getenv(variable);
  if (text == nullptr || *text == '\0') return most;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < least || value > 1 << 20)
    throw Error("ARGUMENT", std::string(variable) + " is " + text + ": expected " + expected);
  return std::min(most, static_cast<int>(value));
}

}  // namespace

int KernelDevice::multiprocessors() {
  return bounded(ownMultiprocessors(), "DENSECL_MULTIPROCESSORS", 1, "a number of multiprocessors, 1 or more");
}
int KernelDevice::capability() { return bounded(ownCapability(), "DENSECL_CAPABILITY", 80, "a compute capability times 10, 80 or more"); }

// wgmma exists on 9.0 alone, and in code that was compiled for sm_90a itself.
bool KernelDevice::present(Family family) {
  if (std::strncmp(kFamilyNames[static_cast<size_t>(family)], "wgmma.", 6) != 0) return true;
  return capability() == 90 && architectures().find("90a") != std::string::npos;
}

bool KernelDevice::usable(Family family) { return (avoided_ >> static_cast<unsigned>(family) & 1) == 0 && present(family); }

Traits KernelDevice::traits() {
  Traits traits;
  traits.capability = capability();
  traits.multiprocessors = multiprocessors();
  traits.recordable = traits.rendersViews = traits.tf32 = traits.tunable = true;
  traits.epilogues = traits.prologues = true;
  traits.vectorBytes = kVectorBytes;
  traits.statisticsRows = kStatisticsRows;
  traits.dtypes = {DType::f32, DType::bf16};
  traits.usualDType = DType::bf16;
  traits.e4m3 = usable(Family::wgmmaConv2dE4m3);
  traits.families = usableFamilies();
  return traits;
}

std::vector<std::string> KernelDevice::usableFamilies() {
  std::vector<std::string> names;
  for (size_t i = 0; i < kFamilies; ++i)
    if (usable(static_cast<Family>(i))) names.push_back(kFamilyNames[i]);
  return names;
}

void KernelDevice::avoidFamilies(const std::vector<std::string>& names) {
  uint32_t avoided = 0;
  for (const std::string& wanted : names) {
    size_t i = 0;
    while (i < kFamilies && wanted != kFamilyNames[i]) ++i;
    if (i == kFamilies) {
      std::string known;
      for (const char* name : kFamilyNames) known += (known.empty() ? "" : ", ") + std::string(name);
      throw Error("ARGUMENT", "there is no family of kernels " + wanted + "; expected one of " + known);
    }
    avoided |= 1u << i;
  }
  avoided_ = avoided;
}

bool usable(const Call& call, Family family) { return static_cast<KernelDevice&>(call.device()).usable(family); }
int multiprocessors(const Call& call) { return static_cast<KernelDevice&>(call.device()).multiprocessors(); }
int capability(const Call& call) { return static_cast<KernelDevice&>(call.device()).capability(); }

}  // namespace densecl::cuda

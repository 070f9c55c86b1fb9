// What GPUs and `simt` have in common: the machine that kernels are chosen for, and the families of kernels that may be used.
#pragma once
#include <atomic>

#include "../core/device.h"

namespace densecl::cuda {

enum class Family {
#define FAMILY(identifier, name) identifier,
#include "families.def"
#undef FAMILY
};

class KernelDevice : public Device {
 public:
  // Of the chip, at most what DENSECL_MULTIPROCESSORS (1, 2, ..) and DENSECL_CAPABILITY (80, 86, ..) say: to run what a smaller or
  // older GPU runs. Throws ARGUMENT where one of them is no such number.
  int multiprocessors();
  int capability();

  // Whether the capability has it, the build has it, and nobody has said to avoid it.
  bool usable(Family family);
  // What the kernels of this folder bring to any device that runs them.
  Traits traits() override;
  void avoidFamilies(const std::vector<std::string>& names) override;

 protected:
  using Device::Device;
  virtual int ownMultiprocessors() = 0;
  virtual int ownCapability() = 0;  // times 10
  // What the addon was compiled for, as DENSECL_ARCHITECTURES has it.
  virtual std::string architectures() = 0;

 private:
  bool present(Family family);
  std::vector<std::string> usableFamilies();
  std::atomic<uint32_t> avoided_{0};
};

}  // namespace densecl::cuda

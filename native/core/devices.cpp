// The devices of this build: the CPU, and what the build switches on.
#include "comm.h"
#include "device.h"

#include <chrono>
#include <cstring>

namespace densecl {

#if defined(DENSECL_SIMT)
Device& simtDevice();  // native/simt/backend.cpp
std::string simtBusId();
#endif
#if defined(DENSECL_CUDA)
int cudaDeviceCount(std::string* why);  // native/cuda/backend.cu; never throws
Device& cudaDevice(int index);
std::string cudaBuildText();
std::string cudaBusId(const Device& device);
#endif

Device& dryDevice(Device& like);  // dry.cpp

namespace {
double now() { return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct FinishedDownload : Download {
  std::vector<unsigned char> bytes;
  void finish(void* to) override { std::memcpy(to, bytes.data(), bytes.size()); }
};
}  // namespace

std::unique_ptr<Download> Device::startDownload(const void* from, size_t bytes) {
  auto copy = std::make_unique<FinishedDownload>();
  copy->bytes.resize(bytes);
  download(copy->bytes.data(), from, bytes);
  return copy;
}

// A device that computes at once has the host's clock.
size_t Device::recordEvent() {
  events_.push_back(now());
  return events_.size() - 1;
}
double Device::elapsed(size_t from, size_t to) {
  REQUIRE(from < events_.size() && to < events_.size(), "INTERNAL", "elapsed: there is no such event");
  return events_[to] - events_[from];
}

std::vector<std::string> deviceNames() {
  std::vector<std::string> names{"cpu"};
#if defined(DENSECL_SIMT)
  names.push_back("simt");
#endif
#if defined(DENSECL_CUDA)
  for (int i = 0; i < cudaDeviceCount(nullptr); ++i) names.push_back("cuda:" + std::to_string(i));
#endif
  return names;
}

#if defined(DENSECL_NCCL)
std::string busId(const Device& device) {
#if defined(DENSECL_SIMT)
  if (&device == &simtDevice()) return simtBusId();
#endif
#if defined(DENSECL_CUDA)
  if (device.name.rfind("cuda:", 0) == 0) return cudaBusId(device);
#endif
  return "";
}
#endif

std::string cudaBuild() {
#if defined(DENSECL_CUDA)
  return cudaBuildText();
#else
  return "";
#endif
}

Device& findDevice(const std::string& name) {
  if (name == "cpu") return cpuDevice();
  if (name.rfind("dry:", 0) == 0 && name.rfind("dry:dry:", 0) != 0) return dryDevice(findDevice(name.substr(4)));
#if defined(DENSECL_SIMT)
  if (name == "simt") return simtDevice();
#endif
  const bool cuda = name.rfind("cuda", 0) == 0;
#if defined(DENSECL_CUDA)
  if (cuda) {
    std::string why;
    const int count = cudaDeviceCount(&why);
    if (count == 0) throw Error("DEVICE", "device " + name + " cannot be used: " + why);
    for (int i = 0; i < count; ++i)
      if (name == "cuda:" + std::to_string(i) || (name == "cuda" && i == 0)) return cudaDevice(i);
    throw Error("DEVICE", "device " + name + " does not exist: this machine has cuda:0" +
                              (count > 1 ? " to cuda:" + std::to_string(count - 1) : std::string()));
  }
#else
  if (cuda)
    throw Error("DEVICE",
                "device " + name + " cannot be used: this addon was built without CUDA; densecl doctor says how to get one with it");
#endif
  std::string known;
  for (const std::string& device : deviceNames()) known += (known.empty() ? "" : ", ") + device;
  throw Error("DEVICE", "there is no device " + name + "; expected one of " + known);
}

}  // namespace densecl

#include "nvjpeg.h"

#include <dlfcn.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>

namespace densecl::nvjpeg {
namespace {

// The interface of nvJPEG since 11.6 (nvjpeg.h), of which this is what is used. Handles and streams are pointers; results are 0 where all
// is well.
constexpr int kMajor = 0, kMinor = 1, kPatch = 2;  // of libraryPropertyType
constexpr int kLeastVersion = 11006;
constexpr int kGpuHybrid = 2, kHardware = 3;  // of nvjpegBackend_t
constexpr unsigned kInterpolation = 32;       // of the flags: chroma is upsampled as libjpeg does it
constexpr int kInterpolationSince = 12001;
constexpr int kRgbInterleaved = 5;  // of nvjpegOutputFormat_t
constexpr int kNotInitialized = 1, kAllocatorFailure = 5, kArchitecture = 7, kNotImplemented = 9;
const char* const kStatus[] = {
    "success",          "not initialized",      "invalid parameter", "bad JPEG",        "this JPEG is not supported", "no memory",
    "execution failed", "another architecture", "internal error",    "not implemented", "incomplete bitstream"};

// nvjpegImage_t: the planes of an image; interleaved pixels are one.
struct Image {
  unsigned char* channel[4];
  size_t pitch[4];
};

struct Library {
  int (*getProperty)(int, int*);
  int (*createEx)(int, void*, void*, unsigned, void**);
  int (*jpegStateCreate)(void*, void**);
  int (*decodeBatchedInitialize)(void*, void*, int, int, int);
  int (*decodeBatched)(void*, void*, const unsigned char* const*, const size_t*, Image*, void*);
};

// Never closed: its handles live as long as the process, and so do the devices.
std::mutex mutex;
const Library* loaded = nullptr;
int loadedVersion = 0;  // the first number times 1000 and the second
std::string loadedText;

const Library& library() {
  REQUIRE(loaded != nullptr, "INTERNAL", "nvJPEG has not been loaded");
  return *loaded;
}

std::string statusText(int status) {
  const bool known = status >= 0 && status < static_cast<int>(sizeof kStatus / sizeof *kStatus);
  return known ? kStatus[status] : "status " + std::to_string(status);
}

void check(int status, const std::string& what) { REQUIRE(status == 0, "TOOL", what + ": nvJPEG says " + statusText(status)); }

// What other files would be decoded after.
bool saysOfFile(int status) { return status != kNotInitialized && status != kAllocatorFailure && status != kArchitecture; }

class Decoder {
 public:
  // Made while its device is the current one.
  explicit Decoder(const std::string& device) {
    const std::string what = "opening nvJPEG on " + device;
    const unsigned flags = loadedVersion >= kInterpolationSince ? kInterpolation : 0;
    int status = library().createEx(kHardware, nullptr, nullptr, flags, &handle_);
    engines_ = status != kArchitecture && status != kNotImplemented;
    // Its other decoder for batches, by kernels.
    if (!engines_) status = library().createEx(kGpuHybrid, nullptr, nullptr, flags, &handle_);
    check(status, what);
    check(library().jpegStateCreate(handle_, &state_), what);
  }

  std::string describe() const {
    return "nvJPEG " + loadedText + (engines_ ? ", by JPEG engines" : ", by kernels: this GPU has no JPEG engines");
  }

  std::string decode(const std::vector<File>& files, void* stream) {
    const size_t count = files.size();
    bytes_.resize(count);
    counts_.resize(count);
    images_.assign(count, {});
    for (size_t i = 0; i < count; ++i) {
      bytes_[i] = files[i].bytes;
      counts_[i] = files[i].count;
      images_[i].channel[0] = files[i].pixels;
      images_[i].pitch[0] = 3 * files[i].width;
    }
    int status = 0;
    if (count != prepared_) status = library().decodeBatchedInitialize(handle_, state_, static_cast<int>(count), 1, kRgbInterleaved);
    if (status == 0) status = library().decodeBatched(handle_, state_, bytes_.data(), counts_.data(), images_.data(), stream);
    // A batch that failed is begun anew.
    prepared_ = status == 0 ? count : 0;
    if (status == 0) return "";
    REQUIRE(saysOfFile(status), "TOOL", "decoding JPEGs: nvJPEG says " + statusText(status));
    return statusText(status);
  }

 private:
  void *handle_ = nullptr, *state_ = nullptr;
  bool engines_ = false;
  size_t prepared_ = 0;
  // The library may read them until the batch is done.
  std::vector<const unsigned char*> bytes_;
  std::vector<size_t> counts_;
  std::vector<Image> images_;
};

std::map<Device*, std::unique_ptr<Decoder>>& decoders() {
  static auto* all = new std::map<Device*, std::unique_ptr<Decoder>>();
  return *all;
}

}  // namespace

std::string load(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (loaded != nullptr) return loadedText;
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) throw Error("TOOL", dlerror());
  static Library nvjpeg;
  std::string absent;
  const auto find = [&](const char* name, auto& function) {
    void* const symbol = dlsym(handle, name);
    if (symbol == nullptr) absent += (absent.empty() ? "" : ", ") + std::string(name);
    std::memcpy(&function, &symbol, sizeof symbol);
  };
  find("nvjpegGetProperty", nvjpeg.getProperty);
  find("nvjpegCreateEx", nvjpeg.createEx);
  find("nvjpegJpegStateCreate", nvjpeg.jpegStateCreate);
  find("nvjpegDecodeBatchedInitialize", nvjpeg.decodeBatchedInitialize);
  find("nvjpegDecodeBatched", nvjpeg.decodeBatched);
  const std::string expected = "expected nvJPEG 11.6 or later";
  REQUIRE(absent.empty(), "TOOL", path + " lacks " + absent + ": " + expected);
  int major = 0, minor = 0, patch = 0;
  nvjpeg.getProperty(kMajor, &major);
  nvjpeg.getProperty(kMinor, &minor);
  nvjpeg.getProperty(kPatch, &patch);
  const std::string text = std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
  const int version = 1000 * major + minor;
  REQUIRE(version >= kLeastVersion, "TOOL", path + " is nvJPEG " + text + ": " + expected);
  loaded = &nvjpeg;
  loadedVersion = version;
  loadedText = text;
  return text;
}

std::string open(Device& device) {
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Decoder>& decoder = decoders()[&device];
  // A handle belongs to the device that is current when it is made.
  if (decoder == nullptr) device.fork([&](void*) { decoder = std::make_unique<Decoder>(device.name); })->join();
  return decoder->describe();
}

std::string decode(Device& device, const std::vector<File>& files, void* stream) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = decoders().find(&device);
  REQUIRE(found != decoders().end() && found->second != nullptr, "INTERNAL", "nvJPEG has not been opened on " + device.name);
  return found->second->decode(files, stream);
}

}  // namespace densecl::nvjpeg

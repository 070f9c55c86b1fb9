// JPEG files to pixels on a GPU by nvJPEG, NVIDIA's library, which is loaded where a run asks for it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/device.h"

namespace densecl::nvjpeg {

// A file in the host's memory, and where its pixels go: rows of `width` times three bytes on the device.
struct File {
  const uint8_t* bytes;
  size_t count;
  uint8_t* pixels;
  size_t width;
};

// Loads the library from `path`, a file or a name that the system's loader knows, once for the process: its version. Throws TOOL, saying
// what is wrong with it.
std::string load(const std::string& path);

// Makes a decoder for the device, once for the process: what it decodes with. Throws TOOL where the library cannot.
std::string open(Device& device);

// Gives the decoding of the files, a batch, to a stream: files and pixels are left alone until that is done, and one decoder does not begin
// a batch before the one before is done, both of which Device::finishUpload waits for. Returns what the library says where it refuses one
// of the files, no matter which: no pixels can be counted on then. Throws TOOL where it fails whatever the files are.
std::string decode(Device& device, const std::vector<File>& files, void* stream);

}  // namespace densecl::nvjpeg

#include "images.h"

#include <algorithm>
#include <string>
#include <vector>

#include "../cpu/augment.h"
#include "../jpeg/decode.h"
#include "values.h"
#if defined(DENSECL_NVJPEG)
#include "../nvjpeg/nvjpeg.h"
#endif

namespace densecl {
namespace {

constexpr double kMostJpegPixels = 65535;  // of a side
constexpr double kMostViewFloats = 2147483647;

}  // namespace

Napi::Value decodeJpeg(const Napi::CallbackInfo& info) {
  const auto numbers = [](const Napi::Value& value, uint32_t* to, uint32_t count) {
    const Napi::Array array = value.As<Napi::Array>();
    for (uint32_t i = 0; i < count; ++i) to[i] = static_cast<uint32_t>(integerOf(array.Get(i), "a size of a JPEG", 0, kMostJpegPixels));
  };
  uint32_t size[2], part[4];
  numbers(info[1], size, 2);
  numbers(info[3], part, 4);
  const auto denominator = static_cast<uint32_t>(integerOf(info[2], "the denominator of a JPEG's size", 1, 8));
  const auto bytes = bytesOf(info[0]), out = bytesOf(info[4]);
  const auto reduced = [&](uint32_t length) { return (length + denominator - 1) / denominator; };
  REQUIRE((denominator & (denominator - 1)) == 0, "ARGUMENT", "decodeJpeg: expected a denominator of 1, 2, 4 or 8");
  REQUIRE(part[2] > 0 && part[3] > 0 && part[0] + part[2] <= reduced(size[0]) && part[1] + part[3] <= reduced(size[1]), "ARGUMENT",
          "decodeJpeg: expected a part of the image");
  REQUIRE(out.second == size_t{3} * part[2] * part[3], "SHAPE", "decodeJpeg: expected 3 bytes for each pixel of the part");
  jpeg::decode(static_cast<const uint8_t*>(bytes.first), bytes.second, size[0], size[1], static_cast<int>(denominator),
               {part[0], part[1], part[2], part[3]}, static_cast<uint8_t*>(out.first));
  return info.Env().Undefined();
}

Napi::Value renderView(const Napi::CallbackInfo& info) {
  const Napi::Array array = info[1].As<Napi::Array>();
  const auto side = [&](uint32_t i) { return static_cast<int>(integerOf(array.Get(i), "a side of a view", 1, kMostViewFloats)); };
  const int height = side(0), width = side(1);
  const auto out = bytesOf(info[0]), pixels = bytesOf(info[2]);
  const auto row = numbersOf(info[3]);
  const double floats = 3.0 * height * width;
  REQUIRE(floats <= kMostViewFloats && static_cast<double>(out.second) == floats * sizeof(float), "SHAPE",
          "renderView: expected 3 floats for each pixel of the view, fewer than 2^31");
  REQUIRE(row.second == cpu::kViewNumbers, "SHAPE", "renderView: expected a row of " + std::to_string(cpu::kViewNumbers) + " numbers");
  cpu::renderView(static_cast<float*>(out.first), 0, height, width, static_cast<const uint8_t*>(pixels.first), pixels.second, row.first);
  return info.Env().Undefined();
}

#if defined(DENSECL_NVJPEG)
Napi::Value startImages(const Napi::CallbackInfo& info, const Handles& handles) {
  constexpr size_t kColumns = 4;
  const Tensor& tensor = handles.get(info[0].ToNumber().DoubleValue(), "startImages");
  const auto memory = bytesOf(info[1]);
  const size_t offset = offsetOf(info[2], tensor), room = std::min(memory.second, tensor.storage->bytes - offset);
  const auto rows = numbersOf(info[3]);
  REQUIRE(rows.second % kColumns == 0, "SHAPE", "startImages: expected rows of " + std::to_string(kColumns) + " numbers");
  const auto* const from = static_cast<const uint8_t*>(memory.first);
  auto* const to = static_cast<uint8_t*>(tensor.raw()) + offset;
  std::vector<Copy> copies;
  std::vector<nvjpeg::File> files;
  for (const double* row = rows.first; row < rows.first + rows.second; row += kColumns) {
    const auto number = [&](size_t i, const char* name, double least, double most) {
      return static_cast<size_t>(integerOf(Napi::Number::New(info.Env(), row[i]), name, least, most));
    };
    const size_t place = number(0, "the place of an image", 0, static_cast<double>(room)), left = room - place;
    const size_t count = number(1, "the bytes of a file", 0, static_cast<double>(left));
    const size_t height = number(2, "the height of an image", 1, kMostViewFloats), width = number(3, "its width", 1, kMostViewFloats);
    const size_t bytes = 3 * height * width;
    REQUIRE(bytes <= left, "SHAPE",
            "startImages: an image of " + std::to_string(height) + "x" + std::to_string(width) + " pixels at byte " +
                std::to_string(place) + " does not fit into " + std::to_string(room) + " bytes");
    if (count == 0)
      copies.push_back({to + place, from + place, bytes});
    else
      files.push_back({from + place, count, to + place, width});
  }
  tensor.storage->written();
  Device& device = tensor.storage->device;
  std::string refused;
  if (files.empty())
    device.startUpload(to, copies);
  else
    device.startUpload(to, copies, [&](void* stream) { refused = nvjpeg::decode(device, files, stream); });
  return Napi::String::New(info.Env(), refused);
}
#endif

}  // namespace densecl

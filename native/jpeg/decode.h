// JPEG to RGB, by libjpeg-turbo (native/third_party/libjpeg-turbo).
#pragma once
#include <cstddef>
#include <cstdint>

namespace densecl::jpeg {

struct Region {
  uint32_t x, y, width, height;
};

// Decodes `region` of the image, which is reduced by `denominator` (1, 2, 4 or 8) first, to `out`: region.width * region.height * 3 bytes.
// The pixels are those that decoding all of it would give there. Throws DECODE where the bytes are not a whole JPEG of 1 or 3 components,
// or where the image's size is not `width` * `height`, from which the caller knows what memory it takes.
void decode(const uint8_t* bytes, size_t count, uint32_t width, uint32_t height, int denominator, const Region& region, uint8_t* out);

}  // namespace densecl::jpeg

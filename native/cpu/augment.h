// One view of the op `augment`, for an image and a view that lie in JavaScript's memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace densecl::cpu {

// The numbers of a row of the op's table, which augment.cpp names.
constexpr size_t kViewNumbers = 25;

// Writes view [height, width, 3] of an image in `pixels`, of so many bytes, by such a row. Throws RANGE with the
// view's number where the image, or the crop in it, lies outside.
void renderView(float* view, int64_t number, int height, int width, const uint8_t* pixels, size_t bytes, const double* row);

}  // namespace densecl::cpu

// One augmented view from decoded pixels: crop and antialiased bilinear resize, colour jitter, grayscale, Gaussian blur,
// horizontal flip, normalisation. Each step is torchvision's function of that name on float images in [0, 1]
// (torchvision.transforms.functional: resized_crop, adjust_*, rgb_to_grayscale, gaussian_blur, hflip, normalize). Work is on
// three planes, so that every loop is over contiguous floats. Runs on the calling thread: data workers call it side by side.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../core/allocator.h"
#include "../core/bf16.h"
#include "../core/parallel.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

struct Filter {
  std::vector<int> first;
  std::vector<int> count;
  std::vector<float> weights;  // (out, taps)
  int taps;
};

// The triangle filter of an antialiased bilinear resize from `in` to `out` samples.
Filter triangle(int in, int out) {
  const double scale = static_cast<double>(in) / out, support = std::max(1.0, scale);
  Filter filter;
  filter.taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  filter.first.resize(out);
  filter.count.resize(out);
  filter.weights.assign(static_cast<size_t>(out) * filter.taps, 0.0f);
  for (int i = 0; i < out; ++i) {
    const double centre = (i + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(centre - support + 0.5)), last = std::min(in, static_cast<int>(centre + support + 0.5));
    double total = 0;
    std::vector<double> weight(last - first);
    for (int j = first; j < last; ++j) total += weight[j - first] = std::max(0.0, 1 - std::abs((j + 0.5 - centre) / support));
    filter.first[i] = first;
    filter.count[i] = last - first;
    for (int j = first; j < last; ++j)
      filter.weights[static_cast<size_t>(i) * filter.taps + j - first] = static_cast<float>(weight[j - first] / total);
  }
  return filter;
}

// row[x] += weight * pixels[x] over interleaved bytes
SIMD void accumulateBytes(float* __restrict row, const uint8_t* __restrict pixels, float weight, int count) {
  for (int x = 0; x < count; ++x) row[x] += weight * static_cast<float>(pixels[x]);
}

// A pixel and the float behind it as one vector: its three sums are made at once. Every pixel takes all taps, those beyond
// its window with weight 0: a loop of constant length is predicted.
SIMD void resizeLine(float* red, float* green, float* blue, const float* line, const int* first, const float* weight, int taps, int width) {
  typedef float Pixel __attribute__((vector_size(16), aligned(4), may_alias));
  for (int x = 0; x < width; ++x, weight += taps) {
    const float* in = line + 3 * first[x];
    Pixel sum = {};
    for (int k = 0; k < taps; ++k) sum += weight[k] * *reinterpret_cast<const Pixel*>(in + 3 * k);
    red[x] = sum[0] * (1.0f / 255);
    green[x] = sum[1] * (1.0f / 255);
    blue[x] = sum[2] * (1.0f / 255);
  }
}

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

// out[x] = sum over k of weight[k] * in[k][x]; 32 sums stay in registers while the taps pass
SIMD void weightedRows(float* __restrict out, const float* const* in, const float* weight, int taps, int count) {
  int x = 0;
  for (; x + 32 <= count; x += 32) {
    Eight a = {}, b = {}, c = {}, d = {};
    for (int k = 0; k < taps; ++k) {
      const Eight* row = reinterpret_cast<const Eight*>(in[k] + x);
      const float w = weight[k];
      a += w * row[0];
      b += w * row[1];
      c += w * row[2];
      d += w * row[3];
    }
    Eight* to = reinterpret_cast<Eight*>(out + x);
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
  }
  for (; x < count; ++x) {
    float sum = 0;
    for (int k = 0; k < taps; ++k) sum += weight[k] * in[k][x];
    out[x] = sum;
  }
}

SIMD float total(const float* p, int count) {
  constexpr int lanes = 16;  // a fixed order of additions, whatever the vector width
  float sum[lanes] = {};
  int i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int l = 0; l < lanes; ++l) sum[l] += p[i + l];
  for (; i < count; ++i) sum[0] += p[i];
  float all = 0;
  for (int l = 0; l < lanes; ++l) all += sum[l];
  return all;
}

SIMD void clampUnit(float* __restrict p, int count) {
  for (int i = 0; i < count; ++i) p[i] = std::min(1.0f, std::max(0.0f, p[i]));
}

SIMD void luma(float* __restrict out, const float* __restrict r, const float* __restrict g, const float* __restrict b, int count) {
  for (int i = 0; i < count; ++i) out[i] = 0.2989f * r[i] + 0.587f * g[i] + 0.114f * b[i];
}

// p = clamp(factor * p + (1 - factor) * other), other an image or a constant
SIMD void blend(float* __restrict p, const float* __restrict other, float constant, float factor, int count) {
  const float rest = 1 - factor;
  if (other != nullptr)
    for (int i = 0; i < count; ++i) p[i] = std::min(1.0f, std::max(0.0f, factor * p[i] + rest * other[i]));
  else
    for (int i = 0; i < count; ++i) p[i] = std::min(1.0f, std::max(0.0f, factor * p[i] + rest * constant));
}

// Hue shift through HSV without a branch: channel n of a colour (h, s, v) is v - v s max(0, min(k, 4 - k, 1)) with
// k = (n + 6 h) mod 6 and n = 5, 3, 1 for red, green, blue.
INLINE float hueChannel(float n, float h, float high, float range) {
  float k = n + h;
  k = k >= 12.0f ? k - 12.0f : k;
  k = k >= 6.0f ? k - 6.0f : k;
  const float ramp = k < 4.0f - k ? k : 4.0f - k;
  const float capped = ramp < 1.0f ? ramp : 1.0f;
  return high - range * (capped > 0.0f ? capped : 0.0f);
}

SIMD void shiftHue(float* __restrict red, float* __restrict green, float* __restrict blue, float shift, int count) {
  for (int i = 0; i < count; ++i) {
    const float r = red[i], g = green[i], b = blue[i];
    const float high = std::max(r, std::max(g, b)), low = std::min(r, std::min(g, b)), range = high - low;
    const float inverse = 1.0f / (range > 0 ? range : 1.0f);
    const float toRed = (g - b) * inverse, toGreen = 2.0f + (b - r) * inverse, toBlue = 4.0f + (r - g) * inverse;
    const float sector = range > 0 ? (high == r ? toRed : (high == g ? toGreen : toBlue)) : 0.0f;
    float h = sector + 6.0f * shift;  // in -4 .. 8
    h = h < 0 ? h + 6.0f : h;
    red[i] = hueChannel(5.0f, h, high, range);
    green[i] = hueChannel(3.0f, h, high, range);
    blue[i] = hueChannel(1.0f, h, high, range);
  }
}

class View {
 public:
  View(int height, int width)
      : height(height),
        width(width),
        size(height * width),
        storage(4 * static_cast<size_t>(size)),
        planes(storage.data()),
        spare(planes + 3 * static_cast<size_t>(size)) {}

  void resizedCrop(const uint8_t* pixels, int64_t rowBytes, int top, int left, int cropHeight, int cropWidth) {
    const Filter rows = triangle(cropHeight, height), columns = triangle(cropWidth, width);
    std::vector<float> line(3 * (static_cast<size_t>(cropWidth) + columns.taps) + 1);  // resizeLine reads all taps, and one float further
    for (int y = 0; y < height; ++y) {
      std::fill_n(line.begin(), 3 * cropWidth, 0.0f);
      for (int k = 0; k < rows.count[y]; ++k)
        accumulateBytes(line.data(), pixels + (static_cast<int64_t>(top) + rows.first[y] + k) * rowBytes + 3 * static_cast<int64_t>(left),
                        rows.weights[static_cast<size_t>(y) * rows.taps + k], 3 * cropWidth);
      resizeLine(plane(0) + y * width, plane(1) + y * width, plane(2) + y * width, line.data(), columns.first.data(),
                 columns.weights.data(), columns.taps, width);
    }
    clampUnit(planes, 3 * size);
  }

  // Each in PyTorch's order of operations.
  void brightness(float factor) { blend(planes, nullptr, 0.0f, factor, 3 * size); }
  void contrast(float factor) { blend(planes, nullptr, total(gray(), size) / static_cast<float>(size), factor, 3 * size); }
  void saturation(float factor) {
    const float* grey = gray();
    for (int c = 0; c < 3; ++c) blend(plane(c), grey, 0.0f, factor, size);
  }
  void hue(float shift) { shiftHue(plane(0), plane(1), plane(2), shift, size); }
  void grayscale() {
    const float* grey = gray();
    for (int c = 0; c < 3; ++c) std::copy(grey, grey + size, plane(c));
  }

  // Separable, with reflected borders.
  void blur(float sigma, int radius) {
    radius = std::min({radius, height - 1, width - 1});
    if (radius <= 0) return;
    const int taps = 2 * radius + 1;
    std::vector<float> kernel(taps), padded(width + 2 * radius);
    std::vector<const float*> rows(taps);
    double sum = 0;
    for (int k = -radius; k <= radius; ++k) sum += std::exp(-0.5 * k * k / (sigma * sigma));
    for (int k = -radius; k <= radius; ++k) kernel[k + radius] = static_cast<float>(std::exp(-0.5 * k * k / (sigma * sigma)) / sum);
    for (int c = 0; c < 3; ++c) {
      float* p = plane(c);
      for (int y = 0; y < height; ++y) {
        const float* line = p + y * width;
        std::copy(line, line + width, padded.data() + radius);
        for (int i = 1; i <= radius; ++i) {
          padded[radius - i] = line[i];
          padded[radius + width - 1 + i] = line[width - 1 - i];
        }
        for (int k = 0; k < taps; ++k) rows[k] = padded.data() + k;
        weightedRows(spare + y * width, rows.data(), kernel.data(), taps, width);
      }
      for (int y = 0; y < height; ++y) {
        for (int k = 0; k < taps; ++k) {
          const int at = y + k - radius;
          rows[k] = spare + (at < 0 ? -at : (at >= height ? 2 * height - 2 - at : at)) * width;
        }
        weightedRows(p + y * width, rows.data(), kernel.data(), taps, width);
      }
    }
  }

  // out is of f32 or bf16.
  template <class T>
  void write(T* out, bool flip, const float* mean, const float* deviation) const {
    float scale[3], shift[3];
    for (int c = 0; c < 3; ++c) {
      scale[c] = 1 / deviation[c];
      shift[c] = -mean[c] / deviation[c];
    }
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        const int from = y * width + (flip ? width - 1 - x : x);
        *out++ = T(planes[from] * scale[0] + shift[0]);
        *out++ = T(planes[size + from] * scale[1] + shift[1]);
        *out++ = T(planes[2 * static_cast<size_t>(size) + from] * scale[2] + shift[2]);
      }
  }

 private:
  float* plane(int c) { return planes + c * static_cast<size_t>(size); }
  const float* gray() {
    luma(spare, plane(0), plane(1), plane(2), size);
    return spare;
  }

  const int height, width, size;
  Scratch<float> storage;
  float* const planes;  // red, green, blue, each `size` floats
  float* const spare;   // one plane for what a step needs between its passes
};

}  // namespace

// Row v of the table makes view first + v of `views`; with `second` its latter half makes the views of that one. A row holds
//   0 offset of its image [height, width, 3] in pixels; 1 height, 2 width; crop: 3 top, 4 left, 5 height, 6 width; 7 flip;
//   8 grayscale; blur: 9 sigma (0: none), 10 radius; 11 mean (3); 14 deviation (3); 17 the colour adjustments in order, four
//   pairs of kind (0 brightness, 1 contrast, 2 saturation, 3 hue, -1 none) and value
void augment(const Call& call) {
  using Names = args::augment;
  const Tensor &out = call.tensor(Names::views), *second = call.optional(Names::second), &pixels = call.tensor(Names::pixels),
               &table = call.tensor(Names::table);
  const int height = static_cast<int>(out.dim(1)), width = static_cast<int>(out.dim(2));
  const int64_t columns = table.dim(1), first = call.integer(Names::first), half = second == nullptr ? table.dim(0) : table.dim(0) / 2;
  REQUIRE(out.dtype == DType::f32 || out.dtype == DType::bf16, "DTYPE",
          "augment: expected views of f32 or bf16 on the CPU but received " + describe(out));
  REQUIRE(3.0 * static_cast<double>(out.dim(1)) * static_cast<double>(out.dim(2)) < 2147483648.0, "SHAPE",
          "augment: expected views of fewer than 2^31 values but received " + describe(out));
  REQUIRE(second == nullptr || table.dim(0) % 2 == 0, "SHAPE",
          "augment: expected table of as many rows for views as for second but received " + describe(table));
  for (const Tensor* views : {&out, second == nullptr ? &out : second})
    REQUIRE(first + half <= views->dim(0), "RANGE", "augment: views " + std::to_string(first) + ".. do not fit into " + describe(*views));
  parallelFor(table.dim(0), [&](int64_t v) {
    const double* row = table.data<double>() + v * columns;
    const auto integer = [&](int i) { return static_cast<int>(row[i]); };
    const int imageHeight = integer(1), imageWidth = integer(2), top = integer(3), left = integer(4), cropHeight = integer(5),
              cropWidth = integer(6);
    REQUIRE(row[0] >= 0 && row[0] + 3.0 * imageHeight * imageWidth <= static_cast<double>(pixels.size()) && top >= 0 && left >= 0 &&
                cropHeight > 0 && cropWidth > 0 && int64_t{top} + cropHeight <= imageHeight && int64_t{left} + cropWidth <= imageWidth,
            "RANGE",
            "augment: the crop of view " + std::to_string(first + v) + " lies outside of its image of " + std::to_string(imageHeight) +
                "x" + std::to_string(imageWidth) + " pixels");
    View view(height, width);
    view.resizedCrop(pixels.data<uint8_t>() + static_cast<int64_t>(row[0]), int64_t{3} * imageWidth, top, left, cropHeight, cropWidth);
    for (int i = 17; i < 25 && row[i] >= 0; i += 2) {
      const float value = static_cast<float>(row[i + 1]);
      switch (integer(i)) {
        case 0: view.brightness(value); break;
        case 1: view.contrast(value); break;
        case 2: view.saturation(value); break;
        case 3: view.hue(value); break;
      }
    }
    if (row[8] != 0) view.grayscale();
    if (row[9] > 0) view.blur(static_cast<float>(row[9]), integer(10));
    float mean[3], deviation[3];
    for (int c = 0; c < 3; ++c) {
      mean[c] = static_cast<float>(row[11 + c]);
      deviation[c] = static_cast<float>(row[14 + c]);
    }
    const Tensor& target = v < half ? out : *second;
    const int64_t place = (first + (v < half ? v : v - half)) * height * width * 3;
    if (target.dtype == DType::bf16)
      view.write(target.data<bf16>() + place, row[7] != 0, mean, deviation);
    else
      view.write(target.data<float>() + place, row[7] != 0, mean, deviation);
  });
}

}  // namespace densecl::cpu

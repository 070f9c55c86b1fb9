// One augmented view from decoded pixels: crop and antialiased bilinear resize, colour jitter, grayscale, Gaussian blur,
// horizontal flip, normalisation. Each step is torchvision's function of that name on float images in [0, 1]
// (torchvision.transforms.functional: resized_crop, adjust_*, rgb_to_grayscale, gaussian_blur, hflip, normalize). Work is on
// three planes, so that every loop is over contiguous floats. Runs on the calling thread: data workers call it side by side.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

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
    for (int j = first; j < last; ++j) filter.weights[static_cast<size_t>(i) * filter.taps + j - first] = static_cast<float>(weight[j - first] / total);
  }
  return filter;
}

// row[x] += weight * pixels[x] over interleaved bytes
SIMD void accumulateBytes(float* __restrict row, const uint8_t* __restrict pixels, float weight, int count) {
  for (int x = 0; x < count; ++x) row[x] += weight * static_cast<float>(pixels[x]);
}

SIMD void accumulate(float* __restrict out, const float* __restrict in, float weight, int count) {
  for (int x = 0; x < count; ++x) out[x] += weight * in[x];
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
SIMD void shiftHue(float* __restrict red, float* __restrict green, float* __restrict blue, float shift, int count) {
  for (int i = 0; i < count; ++i) {
    const float r = red[i], g = green[i], b = blue[i];
    const float high = std::max(r, std::max(g, b)), low = std::min(r, std::min(g, b)), range = high - low;
    const float inverse = 1.0f / (range > 0 ? range : 1.0f);
    const float toRed = (g - b) * inverse, toGreen = 2.0f + (b - r) * inverse, toBlue = 4.0f + (r - g) * inverse;
    const float sector = range > 0 ? (high == r ? toRed : (high == g ? toGreen : toBlue)) : 0.0f;
    float h = sector + 6.0f * shift;  // in -4 .. 8
    h = h < 0 ? h + 6.0f : h;
    const auto channel = [&](float n) {
      float k = n + h;
      k = k >= 12.0f ? k - 12.0f : k;
      k = k >= 6.0f ? k - 6.0f : k;
      return high - range * std::max(0.0f, std::min(1.0f, std::min(k, 4.0f - k)));
    };
    red[i] = channel(5.0f);
    green[i] = channel(3.0f);
    blue[i] = channel(1.0f);
  }
}

class View {
 public:
  View(int height, int width) : height(height), width(width), size(height * width), planes(3 * static_cast<size_t>(size)) {}

  void resizedCrop(const uint8_t* pixels, int rowBytes, int top, int left, int cropHeight, int cropWidth) {
    const Filter rows = triangle(cropHeight, height), columns = triangle(cropWidth, width);
    std::vector<float> line(3 * cropWidth);
    for (int y = 0; y < height; ++y) {
      std::fill(line.begin(), line.end(), 0.0f);
      for (int k = 0; k < rows.count[y]; ++k)
        accumulateBytes(line.data(), pixels + static_cast<size_t>(top + rows.first[y] + k) * rowBytes + 3 * left, rows.weights[static_cast<size_t>(y) * rows.taps + k],
                        3 * cropWidth);
      float* out[3] = {plane(0) + y * width, plane(1) + y * width, plane(2) + y * width};
      for (int x = 0; x < width; ++x) {
        const float* weight = columns.weights.data() + static_cast<size_t>(x) * columns.taps;
        const float* in = line.data() + 3 * columns.first[x];
        float r = 0, g = 0, b = 0;
        for (int k = 0; k < columns.count[x]; ++k, in += 3) {
          r += weight[k] * in[0];
          g += weight[k] * in[1];
          b += weight[k] * in[2];
        }
        out[0][x] = r * (1.0f / 255);
        out[1][x] = g * (1.0f / 255);
        out[2][x] = b * (1.0f / 255);
      }
    }
    clampUnit(planes.data(), 3 * size);
  }

  // PyTorch's order of operations within each adjustment.
  void brightness(float factor) { blend(planes.data(), nullptr, 0.0f, factor, 3 * size); }
  void contrast(float factor) {
    const std::vector<float> grey = gray();
    double sum = 0;
    for (float value : grey) sum += value;
    blend(planes.data(), nullptr, static_cast<float>(sum / size), factor, 3 * size);
  }
  void saturation(float factor) {
    const std::vector<float> grey = gray();
    for (int c = 0; c < 3; ++c) blend(plane(c), grey.data(), 0.0f, factor, size);
  }
  void hue(float shift) { shiftHue(plane(0), plane(1), plane(2), shift, size); }
  void grayscale() {
    const std::vector<float> grey = gray();
    for (int c = 0; c < 3; ++c) std::copy(grey.begin(), grey.end(), plane(c));
  }

  // Separable, with reflected borders.
  void blur(float sigma, int radius) {
    radius = std::min({radius, height - 1, width - 1});
    if (radius <= 0) return;
    std::vector<float> kernel(2 * radius + 1);
    double total = 0;
    for (int k = -radius; k <= radius; ++k) total += std::exp(-0.5 * k * k / (sigma * sigma));
    for (int k = -radius; k <= radius; ++k) kernel[k + radius] = static_cast<float>(std::exp(-0.5 * k * k / (sigma * sigma)) / total);
    const auto reflect = [](int i, int n) { return i < 0 ? -i : (i >= n ? 2 * n - 2 - i : i); };
    std::vector<float> padded(width + 2 * radius), once(size);
    for (int c = 0; c < 3; ++c) {
      float* p = plane(c);
      std::fill(once.begin(), once.end(), 0.0f);
      for (int y = 0; y < height; ++y) {
        for (int x = -radius; x < width + radius; ++x) padded[x + radius] = p[y * width + reflect(x, width)];
        for (int k = 0; k <= 2 * radius; ++k) accumulate(once.data() + y * width, padded.data() + k, kernel[k], width);
      }
      std::fill(p, p + size, 0.0f);
      for (int y = 0; y < height; ++y)
        for (int k = -radius; k <= radius; ++k) accumulate(p + y * width, once.data() + reflect(y + k, height) * width, kernel[k + radius], width);
    }
  }

  void write(float* out, bool flip, const float* mean, const float* deviation) const {
    float scale[3], shift[3];
    for (int c = 0; c < 3; ++c) {
      scale[c] = 1 / deviation[c];
      shift[c] = -mean[c] / deviation[c];
    }
    for (int y = 0; y < height; ++y)
      for (int x = 0; x < width; ++x) {
        const int from = y * width + (flip ? width - 1 - x : x);
        for (int c = 0; c < 3; ++c) *out++ = planes[c * static_cast<size_t>(size) + from] * scale[c] + shift[c];
      }
  }

 private:
  float* plane(int c) { return planes.data() + c * static_cast<size_t>(size); }
  std::vector<float> gray() {
    std::vector<float> out(size);
    luma(out.data(), plane(0), plane(1), plane(2), size);
    return out;
  }

  const int height, width, size;
  std::vector<float> planes;
};

}  // namespace

// tensors: out f32 [N, OH, OW, 3], pixels u8 [H, W, 3]
// numbers: view index in out; crop top, left, height, width; flip; grayscale; blur sigma (0: none), radius; mean 3;
// deviation 3; then the colour adjustments in order as pairs (0 brightness, 1 contrast, 2 saturation, 3 hue; value)
void augment(const Call& call) {
  const Tensor &out = call.t(0), &pixels = call.t(1);
  const int height = static_cast<int>(out.dim(1)), width = static_cast<int>(out.dim(2));
  const int64_t top = call.integer(1), left = call.integer(2), cropHeight = call.integer(3), cropWidth = call.integer(4);
  require(call.integer(0) >= 0 && call.integer(0) < out.dim(0) && top >= 0 && left >= 0 && cropHeight > 0 && cropWidth > 0 && top + cropHeight <= pixels.dim(0) &&
              left + cropWidth <= pixels.dim(1),
          "RANGE", "augment: the crop lies outside of the image " + describe(pixels));
  View view(height, width);
  view.resizedCrop(pixels.data<uint8_t>(), static_cast<int>(3 * pixels.dim(1)), static_cast<int>(top), static_cast<int>(left), static_cast<int>(cropHeight),
                   static_cast<int>(cropWidth));
  for (size_t i = 15; i + 1 < call.numbers.size(); i += 2) {
    const float value = static_cast<float>(call.number(i + 1));
    switch (call.integer(i)) {
      case 0: view.brightness(value); break;
      case 1: view.contrast(value); break;
      case 2: view.saturation(value); break;
      case 3: view.hue(value); break;
    }
  }
  if (call.number(6) != 0) view.grayscale();
  if (call.number(7) > 0) view.blur(static_cast<float>(call.number(7)), static_cast<int>(call.integer(8)));
  float mean[3], deviation[3];
  for (int c = 0; c < 3; ++c) {
    mean[c] = static_cast<float>(call.number(9 + c));
    deviation[c] = static_cast<float>(call.number(12 + c));
  }
  view.write(out.data<float>() + call.integer(0) * height * width * 3, call.number(5) != 0, mean, deviation);
}

}  // namespace densecl::cpu

// One augmented view from decoded pixels: crop and antialiased bilinear resize, colour jitter, grayscale, Gaussian blur,
// horizontal flip, normalisation. Each step is torchvision's function of that name on float images in [0, 1]
// (torchvision.transforms.functional: resized_crop, adjust_*, rgb_to_grayscale, gaussian_blur, hflip, normalize). Work is on
// three planes, so that every loop is over contiguous floats, and goes through them some rows at a time, so that what one step
// wrote is in the first cache for the next. Runs on the calling thread: data workers call it side by side.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../core/allocator.h"
#include "../core/bf16.h"
#include "../core/parallel.h"
#include "../core/scratch.h"
#include "augment.h"
#include "isa.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

// Outputs are made in groups, for which a filter has the last one some times more.
constexpr int kGroup = 4;

struct Filter {
  std::vector<int64_t> first;  // of the inputs of each output
  std::vector<float> weights;  // (out, taps)
  int taps;                    // of the widest window; narrower ones have weights of 0
};

// The triangle filter of an antialiased bilinear resize from `in` to `out` samples; mirrored, the last output comes first.
Filter triangle(int in, int out, bool mirrored = false) {
  const double scale = static_cast<double>(in) / out, support = std::max(1.0, scale);
  const auto centre = [&](int i) { return (i + 0.5) * scale; };
  const auto first = [&](int i) { return std::max(0, static_cast<int>(centre(i) - support + 0.5)); };
  const auto last = [&](int i) { return std::min(in, static_cast<int>(centre(i) + support + 0.5)); };
  Filter filter{};
  for (int i = 0; i < out; ++i) filter.taps = std::max(filter.taps, last(i) - first(i));
  for (int place = 0; place < out + kGroup - 1; ++place) {
    const int inside = std::min(place, out - 1), i = mirrored ? out - 1 - inside : inside, from = std::min(first(i), in - filter.taps);
    const auto weight = [&](int j) { return std::max(0.0, 1 - std::abs((j + 0.5 - centre(i)) / support)); };
    double total = 0;
    for (int j = first(i); j < last(i); ++j) total += weight(j);
    filter.first.push_back(from);
    for (int j = from; j < from + filter.taps; ++j)
      filter.weights.push_back(j < first(i) || j >= last(i) ? 0.0f : static_cast<float>(weight(j) / total));
  }
  return filter;
}

SIMD(void, toUnit, (float* __restrict out, const uint8_t* __restrict in, int count), (out, in, count)) {
  for (int i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]) * (1.0f / 255);
}

typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));

// out[x] = sum over k of weight[k] * in[k][x]; 64 sums stay in registers while the taps pass
SIMD(void, weightedLines, (float* __restrict out, const float* const* in, const float* weight, int taps, int count),
     (out, in, weight, taps, count)) {
  int x = 0;
  for (; x + 64 <= count; x += 64) {
    Sixteen a = {}, b = {}, c = {}, d = {};
    for (int k = 0; k < taps; ++k) {
      const Sixteen* line = reinterpret_cast<const Sixteen*>(in[k] + x);
      const float w = weight[k];
      a += w * line[0];
      b += w * line[1];
      c += w * line[2];
      d += w * line[3];
    }
    Sixteen* to = reinterpret_cast<Sixteen*>(out + x);
    to[0] = a;
    to[1] = b;
    to[2] = c;
    to[3] = d;
  }
  for (; x + 16 <= count; x += 16) {
    Sixteen sum = {};
    for (int k = 0; k < taps; ++k) sum += weight[k] * *reinterpret_cast<const Sixteen*>(in[k] + x);
    *reinterpret_cast<Sixteen*>(out + x) = sum;
  }
  for (; x < count; ++x) {
    float sum = 0;
    for (int k = 0; k < taps; ++k) sum += weight[k] * in[k][x];
    out[x] = sum;
  }
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int FourInts __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourInts{__VA_ARGS__})
#endif

// The same pixels of the three planes.
struct Planes {
  float *red, *green, *blue;
};

INLINE float unit(float value) { return std::min(1.0f, std::max(0.0f, value)); }
INLINE float luma(float r, float g, float b) { return 0.2989f * r + 0.587f * g + 0.114f * b; }

// A line of interleaved pixels to the planes, up to kGroup - 1 pixels beyond which are written too. A pixel and the float behind it are
// one vector: its three sums are made at once, and those of a group are exchanged for a vector of each plane. A loop of constant length
// is predicted, and unrolled where kTaps says it.
template <int kTaps = 0>
INLINE void resizeLineLoop(Planes out, const float* line, const Filter& filter, int width) {
  const int taps = kTaps > 0 ? kTaps : filter.taps;
  const int64_t* first = filter.first.data();
  const float* weight = filter.weights.data();
  for (int x = 0; x < width; x += kGroup) {
    Four sums[kGroup];
    for (Four& sum : sums) {
      const float* in = line + 3 * *first++;
      sum = Four{};
      for (int k = 0; k < taps; ++k) sum += weight[k] * *reinterpret_cast<const Four*>(in + 3 * k);
      weight += taps;
    }
    const Four early = SHUFFLE(sums[0], sums[1], 0, 4, 1, 5), late = SHUFFLE(sums[2], sums[3], 0, 4, 1, 5);
    const Four earlyBlue = SHUFFLE(sums[0], sums[1], 2, 6, 3, 7), lateBlue = SHUFFLE(sums[2], sums[3], 2, 6, 3, 7);
    *reinterpret_cast<Four*>(out.red + x) = SHUFFLE(early, late, 0, 1, 4, 5);
    *reinterpret_cast<Four*>(out.green + x) = SHUFFLE(early, late, 2, 3, 6, 7);
    *reinterpret_cast<Four*>(out.blue + x) = SHUFFLE(earlyBlue, lateBlue, 0, 1, 4, 5);
  }
}
SIMD(void, resizeLine, (Planes out, const float* line, const Filter& filter, int width), (out, line, filter, width)) {
  switch (filter.taps) {
    case 2: return resizeLineLoop<2>(out, line, filter, width);
    case 3: return resizeLineLoop<3>(out, line, filter, width);
    case 4: return resizeLineLoop<4>(out, line, filter, width);
    case 5: return resizeLineLoop<5>(out, line, filter, width);
    default: return resizeLineLoop(out, line, filter, width);
  }
}

SIMD(float, lumaSum, (Planes planes, int count), (planes, count)) {
  const float* __restrict r = planes.red, * __restrict g = planes.green, * __restrict b = planes.blue;
  constexpr int lanes = 16;  // a fixed order of additions, whatever the vector width
  float sum[lanes] = {};
  int i = 0;
  for (; i + lanes <= count; i += lanes)
    for (int l = 0; l < lanes; ++l) sum[l] += luma(r[i + l], g[i + l], b[i + l]);
  for (; i < count; ++i) sum[0] += luma(r[i], g[i], b[i]);
  float all = 0;
  for (int l = 0; l < lanes; ++l) all += sum[l];
  return all;
}

// Each colour becomes clamp(factor * colour + (1 - factor) * other), where other is a constant,
SIMD(void, blend, (Planes planes, float other, float factor, int count), (planes, other, factor, count)) {
  float* __restrict r = planes.red, * __restrict g = planes.green, * __restrict b = planes.blue;
  const float rest = (1 - factor) * other;
  for (int i = 0; i < count; ++i) {
    r[i] = unit(factor * r[i] + rest);
    g[i] = unit(factor * g[i] + rest);
    b[i] = unit(factor * b[i] + rest);
  }
}
// or the pixel's luma.
SIMD(void, blendLuma, (Planes planes, float factor, int count), (planes, factor, count)) {
  float* __restrict r = planes.red, * __restrict g = planes.green, * __restrict b = planes.blue;
  for (int i = 0; i < count; ++i) {
    const float rest = (1 - factor) * luma(r[i], g[i], b[i]);
    r[i] = unit(factor * r[i] + rest);
    g[i] = unit(factor * g[i] + rest);
    b[i] = unit(factor * b[i] + rest);
  }
}

SIMD(void, toLuma, (Planes planes, int count), (planes, count)) {
  float* __restrict r = planes.red, * __restrict g = planes.green, * __restrict b = planes.blue;
  for (int i = 0; i < count; ++i) r[i] = g[i] = b[i] = luma(r[i], g[i], b[i]);
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

SIMD(void, shiftHue, (Planes planes, float shift, int count), (planes, shift, count)) {
  float* __restrict red = planes.red, * __restrict green = planes.green, * __restrict blue = planes.blue;
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

// Interleaves a line of the planes and normalises it: out = colour * scale + shift.
struct Normalisation {
  float scale[3], shift[3];
};
template <class T>
INLINE void writeLineLoop(T* __restrict out, Planes planes, const Normalisation& by, int width) {
  const float* __restrict r = planes.red, * __restrict g = planes.green, * __restrict b = planes.blue;
  const Normalisation n = by;
  for (int x = 0; x < width; ++x) {
    out[3 * x] = T(r[x] * n.scale[0] + n.shift[0]);
    out[3 * x + 1] = T(g[x] * n.scale[1] + n.shift[1]);
    out[3 * x + 2] = T(b[x] * n.scale[2] + n.shift[2]);
  }
}
SIMD(void, writeLine, (float* out, Planes planes, const Normalisation& by, int width), (out, planes, by, width)) {
  writeLineLoop(out, planes, by, width);
}
SIMD(void, writeLine, (bf16 * out, Planes planes, const Normalisation& by, int width), (out, planes, by, width)) {
  writeLineLoop(out, planes, by, width);
}

// A row of the table.
struct ViewRow {
  explicit ViewRow(const double* row)
      : offset(static_cast<int64_t>(row[0])),
        imageHeight(static_cast<int>(row[1])),
        imageWidth(static_cast<int>(row[2])),
        top(static_cast<int>(row[3])),
        left(static_cast<int>(row[4])),
        cropHeight(static_cast<int>(row[5])),
        cropWidth(static_cast<int>(row[6])),
        flip(row[7] != 0),
        grayscale(row[8] != 0),
        sigma(static_cast<float>(row[9])),
        radius(sigma > 0 ? static_cast<int>(row[10]) : 0),
        adjustments(row + 17) {
    for (int c = 0; c < 3; ++c) {
      const auto mean = static_cast<float>(row[11 + c]), deviation = static_cast<float>(row[14 + c]);
      normalisation.scale[c] = 1 / deviation;
      normalisation.shift[c] = -mean / deviation;
    }
  }
  int kind(int i) const { return i < kAdjustments ? static_cast<int>(adjustments[2 * i]) : kNone; }
  float value(int i) const { return static_cast<float>(adjustments[2 * i + 1]); }

  static constexpr int kAdjustments = 4, kNone = -1, kBrightness = 0, kContrast = 1, kSaturation = 2, kHue = 3;

  const int64_t offset;
  const int imageHeight, imageWidth, top, left, cropHeight, cropWidth;
  const bool flip, grayscale;
  const float sigma;
  const int radius;
  Normalisation normalisation;

 private:
  const double* const adjustments;
};

// A view in three planes. Passes over them end at the next contrast, which needs a mean of what was before it, or with the view; a pass
// takes all its steps for some lines at a time, which stay in the first cache.
template <class T>
class View {
 public:
  View(T* out, int height, int width, const uint8_t* pixels, const ViewRow& row)
      : out(out),
        height(height),
        width(width),
        radius(std::min({row.radius, height - 1, width - 1})),
        row(row),
        rows(triangle(row.cropHeight, height)),
        columns(triangle(row.cropWidth, width, row.flip)),
        stride(int64_t{3} * row.imageWidth),
        crop(pixels + row.offset + row.top * stride + 3 * int64_t{row.left}),
        lineSize(3 * static_cast<size_t>(row.cropWidth)),
        lines(lineSize * rows.taps),
        line(lineSize + 1),  // resizeLine reads one float further
        planeSize(static_cast<size_t>(height) * width + kGroup),
        storage(3 * planeSize) {}

  void render() {
    constexpr int fewPixels = 2048;
    const int fewLines = std::max(1, fewPixels / width);
    if (radius > 0) prepareBlur();
    float mean = 0;
    for (int begin = 0, end = 0;; begin = end + 1) {
      float sum = 0;
      for (int y = 0; y < height; y += fewLines) {
        const int lines = std::min(fewLines, height - y), count = lines * width;
        if (begin == 0)
          for (int i = y; i < y + lines; ++i) resize(i);
        else
          blend(at(y), mean, row.value(begin - 1), count);
        end = adjust(at(y), begin, count);
        if (row.kind(end) == ViewRow::kContrast)
          sum += lumaSum(at(y), count);
        else
          finish(y, lines);
      }
      if (row.kind(end) != ViewRow::kContrast) break;
      mean = sum / static_cast<float>(height * width);
    }
    if (radius > 0)
      for (int y = 0; y < height; ++y) blurColumns(y);
  }

 private:
  // The planes from line y on.
  Planes at(int y) {
    float* first = storage.data() + static_cast<size_t>(y) * width;
    return {first, first + planeSize, first + 2 * planeSize};
  }

  // Lines of the crop become floats once, in a ring of as many as one line of the view is made of.
  void resize(int y) {
    const int count = static_cast<int>(lineSize), end = static_cast<int>(rows.first[y]) + rows.taps;
    const auto place = [&](int i) { return lines.data() + lineSize * (i % rows.taps); };
    for (linesRead = std::max(linesRead, end - rows.taps); linesRead < end; ++linesRead)
      toUnit(place(linesRead), crop + linesRead * stride, count);
    inputs.resize(rows.taps);
    for (int k = 0; k < rows.taps; ++k) inputs[k] = place(end - rows.taps + k);
    weightedLines(line.data(), inputs.data(), rows.weights.data() + int64_t{y} * rows.taps, rows.taps, count);
    resizeLine(at(y), line.data(), columns, width);
  }

  // The adjustments from `next` on, up to a contrast or the end; returns where it stopped.
  int adjust(Planes planes, int next, int count) const {
    for (int kind = row.kind(next); kind != ViewRow::kNone && kind != ViewRow::kContrast; kind = row.kind(++next)) {
      const float value = row.value(next);
      if (kind == ViewRow::kBrightness) blend(planes, 0.0f, value, count);
      if (kind == ViewRow::kSaturation) blendLuma(planes, value, count);
      if (kind == ViewRow::kHue) shiftHue(planes, value, count);
    }
    return next;
  }

  // What follows the adjustments, but for the second half of a blur.
  void finish(int y, int lines) {
    if (row.grayscale) toLuma(at(y), lines * width);
    for (int i = y; i < y + lines; ++i) {
      if (radius > 0)
        blurLine(at(i));
      else
        write(at(i), i);
    }
  }

  void write(Planes planes, int y) { writeLine(out + int64_t{3} * y * width, planes, row.normalisation, width); }

  // The blur is separable, with reflected borders.
  void prepareBlur() {
    const auto density = [&](int k) { return std::exp(-0.5 * k * k / (row.sigma * row.sigma)); };
    double sum = 0;
    for (int k = -radius; k <= radius; ++k) sum += density(k);
    for (int k = -radius; k <= radius; ++k) kernel.push_back(static_cast<float>(density(k) / sum));
    padded.resize(std::max(width + 2 * radius, 3 * width));
  }
  void blurLine(Planes planes) {
    for (float* samples : {planes.red, planes.green, planes.blue}) {
      std::copy(samples, samples + width, padded.data() + radius);
      for (int i = 1; i <= radius; ++i) {
        padded[radius - i] = samples[i];
        padded[radius + width - 1 + i] = samples[width - 1 - i];
      }
      inputs.resize(kernel.size());
      for (size_t k = 0; k < kernel.size(); ++k) inputs[k] = padded.data() + k;
      weightedLines(samples, inputs.data(), kernel.data(), static_cast<int>(kernel.size()), width);
    }
  }
  void blurColumns(int y) {
    const Planes blurred{padded.data(), padded.data() + width, padded.data() + 2 * width};
    inputs.resize(kernel.size());
    for (const auto plane : {&Planes::red, &Planes::green, &Planes::blue}) {
      for (int k = -radius; k <= radius; ++k) {
        const int from = y + k;
        inputs[k + radius] = at(from < 0 ? -from : from >= height ? 2 * height - 2 - from : from).*plane;
      }
      weightedLines(blurred.*plane, inputs.data(), kernel.data(), static_cast<int>(kernel.size()), width);
    }
    write(blurred, y);
  }

  T* const out;
  const int height, width, radius;
  const ViewRow& row;
  const Filter rows, columns;
  const int64_t stride;  // of the image, in bytes
  const uint8_t* const crop;
  const size_t lineSize;           // of the crop
  std::vector<float> lines, line;  // the last lines of the crop, and their weighted sum
  int linesRead = 0;
  const size_t planeSize;
  Scratch<float> storage;
  std::vector<float> kernel, padded;
  std::vector<const float*> inputs;  // what the weights of a filter or the kernel are multiplied by
};

template <class T>
void renderChecked(T* view, int64_t number, int height, int width, const uint8_t* pixels, size_t bytes, const double* numbers) {
  const ViewRow row(numbers);
  REQUIRE(numbers[0] >= 0 && numbers[0] + 3.0 * row.imageHeight * row.imageWidth <= static_cast<double>(bytes) && row.top >= 0 &&
              row.left >= 0 && row.cropHeight > 0 && row.cropWidth > 0 && int64_t{row.top} + row.cropHeight <= row.imageHeight &&
              int64_t{row.left} + row.cropWidth <= row.imageWidth,
          "RANGE",
          "augment: the crop of view " + std::to_string(number) + " lies outside of its image of " + std::to_string(row.imageHeight) + "x" +
              std::to_string(row.imageWidth) + " pixels");
  View(view, height, width, pixels, row).render();
}

}  // namespace

void renderView(float* view, int64_t number, int height, int width, const uint8_t* pixels, size_t bytes, const double* row) {
  renderChecked(view, number, height, width, pixels, bytes, row);
}

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
    const Tensor& target = v < half ? out : *second;
    const int64_t place = (first + (v < half ? v : v - half)) * height * width * 3;
    const auto render = [&](auto* views) {
      renderChecked(views + place, first + v, height, width, pixels.data<uint8_t>(), static_cast<size_t>(pixels.size()), row);
    };
    if (target.dtype == DType::bf16)
      render(target.data<bf16>());
    else
      render(target.data<float>());
  });
}

}  // namespace densecl::cpu

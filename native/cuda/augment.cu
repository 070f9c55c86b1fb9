// Augmented views from decoded pixels, all of a batch in one kernel: a block makes one view after another. The work of
// native/cpu/augment.cpp in the same order, in as few passes over the view as its means allow: crop, resize and the colour
// adjustments up to the first contrast (whose mean it sums on the way), the rest, and the blur. Planes between passes are
// scratch memory of the block.
#include "kernel/reduce.cuh"
#include "ops.h"
#include "runtime.h"

namespace densecl::cuda {
namespace {

constexpr int kColumns = 25, kMaxRadius = 63;

struct Colour {
  float r, g, b;
};

DEVICE float unit(float value) { return fminf(1.0f, fmaxf(0.0f, value)); }
DEVICE float luma(const Colour& c) { return 0.2989f * c.r + 0.587f * c.g + 0.114f * c.b; }
DEVICE Colour blend(const Colour& c, float other, float factor) {
  const float rest = (1 - factor) * other;
  return {unit(factor * c.r + rest), unit(factor * c.g + rest), unit(factor * c.b + rest)};
}

// Channel n of a colour of hue h (in sixths), as on the CPU.
DEVICE float hueChannel(float n, float h, float high, float range) {
  float k = n + h;
  k = k >= 12.0f ? k - 12.0f : k;
  k = k >= 6.0f ? k - 6.0f : k;
  return high - range * fmaxf(0.0f, fminf(fminf(k, 4.0f - k), 1.0f));
}

DEVICE Colour shiftHue(const Colour& c, float shift) {
  const float high = fmaxf(c.r, fmaxf(c.g, c.b)), range = high - fminf(c.r, fminf(c.g, c.b)), inverse = 1.0f / (range > 0 ? range : 1.0f);
  const float sector = range > 0 ? (high == c.r   ? (c.g - c.b) * inverse
                                    : high == c.g ? 2.0f + (c.b - c.r) * inverse
                                                  : 4.0f + (c.r - c.g) * inverse)
                                 : 0.0f;
  float h = sector + 6.0f * shift;
  h = h < 0 ? h + 6.0f : h;
  return {hueChannel(5.0f, h, high, range), hueChannel(3.0f, h, high, range), hueChannel(1.0f, h, high, range)};
}

// A row of the table (src/data/augment.ts writes it).
struct ViewTable {
  int64_t offset;
  int imageWidth, top, left, cropHeight, cropWidth, wantedRadius, radius;
  bool flip, grayscale;
  float sigma, mean[3], deviation[3];
  const double* adjustments;  // pairs of kind and value; kind -1 ends them
  DEVICE ViewTable(const double* row, int height, int width) {
    offset = static_cast<int64_t>(row[0]);
    imageWidth = static_cast<int>(row[2]);
    top = static_cast<int>(row[3]);
    left = static_cast<int>(row[4]);
    cropHeight = static_cast<int>(row[5]);
    cropWidth = static_cast<int>(row[6]);
    flip = row[7] != 0;
    grayscale = row[8] != 0;
    sigma = static_cast<float>(row[9]);
    wantedRadius = sigma > 0 ? static_cast<int>(row[10]) : 0;
    const int side = (height < width ? height : width) - 1, most = side < kMaxRadius ? side : kMaxRadius;
    radius = wantedRadius < most ? wantedRadius : most;
    for (int c = 0; c < 3; ++c) {
      mean[c] = static_cast<float>(row[11 + c]);
      deviation[c] = static_cast<float>(row[14 + c]);
    }
    adjustments = row + 17;
  }
  DEVICE int kind(int i) const { return i < 4 ? static_cast<int>(adjustments[2 * i]) : -1; }
  DEVICE float value(int i) const { return static_cast<float>(adjustments[2 * i + 1]); }
};

// One axis of the triangle filter of an antialiased bilinear resize: taps first <= j < last around output i.
struct Taps {
  int first, last;
  float centre, inverse;  // of the support
  DEVICE Taps(int i, int in, int out) {
    const float scale = static_cast<float>(in) / static_cast<float>(out);
    const float support = fmaxf(1.0f, scale);
    inverse = 1.0f / support;
    centre = (static_cast<float>(i) + 0.5f) * scale;
    first = static_cast<int>(fmaxf(0.0f, centre - support + 0.5f));
    last = static_cast<int>(centre + support + 0.5f);
    last = last < in ? last : in;
  }
  DEVICE float weight(int j) const { return fmaxf(0.0f, 1 - fabsf((static_cast<float>(j) + 0.5f - centre) * inverse)); }
};

DEVICE Colour resample(const uint8_t* pixels, const ViewTable& view, int y, int x, int height, int width) {
  const Taps rows(y, view.cropHeight, height), columns(x, view.cropWidth, width);
  Colour sum{0, 0, 0};
  float total = 0;
  for (int i = rows.first; i < rows.last; ++i) {
    const uint8_t* line = pixels + (static_cast<int64_t>(view.top + i) * view.imageWidth + view.left) * 3;
    const float rowWeight = rows.weight(i);
    for (int j = columns.first; j < columns.last; ++j) {
      const float weight = rowWeight * columns.weight(j);
      sum.r += weight * line[3 * j];
      sum.g += weight * line[3 * j + 1];
      sum.b += weight * line[3 * j + 2];
      total += weight;
    }
  }
  const float scale = 1.0f / (255.0f * total);
  return {unit(sum.r * scale), unit(sum.g * scale), unit(sum.b * scale)};
}

struct Memory {
  float sums[kThreads / kWarp];
  float kernel[2 * kMaxRadius + 1];
};

// The adjustments from `next` on, up to a contrast or the end; returns where it stopped.
DEVICE int adjust(Colour& colour, const ViewTable& view, int next) {
  for (int kind = view.kind(next); kind >= 0 && kind != 1; kind = view.kind(++next)) {
    const float value = view.value(next);
    if (kind == 0) colour = blend(colour, 0.0f, value);
    if (kind == 2) colour = blend(colour, luma(colour), value);
    if (kind == 3) colour = shiftHue(colour, value);
  }
  return next;
}

template <class T>
DEVICE void writePixel(T* out, const ViewTable& view, const Colour& colour, int y, int x, int width) {
  T* to = out + (static_cast<int64_t>(y) * width + (view.flip ? width - 1 - x : x)) * 3;
  to[0] = T((colour.r - view.mean[0]) / view.deviation[0]);
  to[1] = T((colour.g - view.mean[1]) / view.deviation[1]);
  to[2] = T((colour.b - view.mean[2]) / view.deviation[2]);
}

DEVICE int reflect(int i, int size) { return i < 0 ? -i : i >= size ? 2 * size - 2 - i : i; }

template <class T>
DEVICE void blurAndWrite(T* out, float* planes, const ViewTable& view, Memory& memory, int height, int width) {
  const int size = height * width, taps = 2 * view.radius + 1;
  for (int k = static_cast<int>(threadIdx.x); k < taps; k += kThreads) {
    float sum = 0;
    for (int i = -view.radius; i <= view.radius; ++i) sum += expf(-0.5f * static_cast<float>(i * i) / (view.sigma * view.sigma));
    memory.kernel[k] = expf(-0.5f * static_cast<float>((k - view.radius) * (k - view.radius)) / (view.sigma * view.sigma)) / sum;
  }
  __syncthreads();
  float* lines = planes + 3 * static_cast<int64_t>(size);  // blurred along x
  for (int i = static_cast<int>(threadIdx.x); i < 3 * size; i += kThreads) {
    const int x = i % width;
    float sum = 0;
    for (int k = 0; k < taps; ++k) sum += memory.kernel[k] * planes[i - x + reflect(x + k - view.radius, width)];
    lines[i] = sum;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
    const int y = i / width, x = i % width;
    Colour sum{0, 0, 0};
    for (int k = 0; k < taps; ++k) {
      const float* from = lines + reflect(y + k - view.radius, height) * width + x;
      sum.r += memory.kernel[k] * from[0];
      sum.g += memory.kernel[k] * from[size];
      sum.b += memory.kernel[k] * from[2 * static_cast<int64_t>(size)];
    }
    writePixel(out, view, sum, y, x, width);
  }
}

// scratch: six planes of a view for each block
template <class T>
__global__ void __launch_bounds__(kThreads) augmentKernel(T* out, T* second, const uint8_t* pixels, const double* table, float* scratch,
                                                          int views, int half, int height, int width, Report* report) {
  Memory& memory = sharedMemory<Memory>();
  const int size = height * width;
  float* planes = scratch + static_cast<int64_t>(blockIdx.x) * 6 * size;
  for (int v = static_cast<int>(blockIdx.x); v < views; v += static_cast<int>(gridDim.x)) {
    const ViewTable view(table + static_cast<int64_t>(v) * kColumns, height, width);
    if (view.wantedRadius > kMaxRadius && threadIdx.x == 0) fileReport(report, kBlurRadius, view.wantedRadius, kMaxRadius);
    T* to = v < half ? out + static_cast<int64_t>(v) * size * 3 : second + static_cast<int64_t>(v - half) * size * 3;
    int next = 0;
    float mean = 0;  // of the gray image, for a contrast
    for (bool first = true;; first = false) {
      // The pass ends at the next contrast, or with the view.
      int stop = next;
      float sum = 0;
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
        Colour colour = first ? resample(pixels + view.offset, view, i / width, i % width, height, width)
                              : Colour{planes[i], planes[size + i], planes[2 * static_cast<int64_t>(size) + i]};
        if (!first) colour = blend(colour, mean, view.value(next - 1));
        stop = adjust(colour, view, next);
        const bool last = view.kind(stop) < 0;
        if (last && view.grayscale) colour.r = colour.g = colour.b = luma(colour);
        sum += luma(colour);
        if (last && view.radius == 0) {
          writePixel(to, view, colour, i / width, i % width, width);
        } else {
          planes[i] = colour.r;
          planes[size + i] = colour.g;
          planes[2 * static_cast<int64_t>(size) + i] = colour.b;
        }
      }
      // Threads without a pixel must stop at the same place.
      Colour none{0, 0, 0};
      stop = adjust(none, view, next);
      mean = blockSum(sum, memory.sums) / static_cast<float>(size);
      if (view.kind(stop) < 0) break;
      next = stop + 1;
    }
    // No barrier after it: the next view's first pass writes what was last read before the barrier inside.
    if (view.radius > 0) blurAndWrite(to, planes, view, memory, height, width);
  }
}

}  // namespace

void augment(const Call& call) {
  using Names = args::augment;
  const Tensor &out = call.tensor(Names::views), *second = call.optional(Names::second), &pixels = call.tensor(Names::pixels),
               &table = call.tensor(Names::table);
  const int views = static_cast<int>(table.dim(0)), height = static_cast<int>(out.dim(1)), width = static_cast<int>(out.dim(2));
  dispatchFloat(call, out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const int64_t blocks = std::min<int64_t>(views, int64_t{4} * multiprocessors(call)), view = int64_t{3} * height * width;
    DeviceScratch<float> scratch(call, blocks * 2 * view);
    launch(call, augmentKernel<T>, Grid{blocks}, kThreads, sizeof(Memory), out.data<T>() + call.integer(Names::first) * view,
           second == nullptr ? nullptr : second->data<T>() + call.integer(Names::first) * view, pixels.data<uint8_t>(),
           table.data<double>(), scratch.data(), views, second == nullptr ? views : views / 2, height, width, reportOf(call));
  });
}

}  // namespace densecl::cuda

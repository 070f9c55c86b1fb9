// Masks P x Q of boxes [x1, y1, x2, y2] as pixels of an image (detectron2, paste_masks_in_image): the pixel (i, j) has its centre at
//   u = (j + 1/2 - x1) / (x2 - x1) Q - 1/2,  v = (i + 1/2 - y1) / (y2 - y1) P - 1/2
// of the mask, which is read there bilinearly, zero outside; y = 1 where that is at least `threshold`, else 0. Geometry is in double. A box
// that is not finite or has no area has no pixel.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../core/parallel.h"
#include "ops.h"

namespace densecl::cpu {
namespace {

// The pixels of an axis that a box reaches, and where each lies in the mask: between `low`, which may be -1, and the next cell.
struct Axis {
  struct Pixel {
    int64_t low;
    double share;  // of the next cell
  };
  int64_t begin = 0;
  std::vector<Pixel> pixels;

  Axis(double from, double to, int64_t cells, int64_t size) {
    const double length = to - from, count = static_cast<double>(cells);
    if (!std::isfinite(from) || !std::isfinite(length) || !(length > 0)) return;
    // Half a cell beyond the box on either side, and a pixel for rounding.
    const double margin = length / count / 2 + 1;
    begin = static_cast<int64_t>(std::clamp(std::floor(from - margin), 0.0, static_cast<double>(size)));
    const auto end = static_cast<int64_t>(std::clamp(std::ceil(to + margin), 0.0, static_cast<double>(size)));
    for (int64_t i = begin; i < end; ++i) {
      const double at = (static_cast<double>(i) + 0.5 - from) * count / length - 0.5, low = std::floor(at);
      pixels.push_back(at > -1 && at < count ? Pixel{static_cast<int64_t>(low), at - low} : Pixel{cells, 0});
    }
  }
};

}  // namespace

void pasteMasks(const Call& call) {
  using Names = args::pasteMasks;
  const Tensor &y = call.tensor(Names::y), &x = call.tensor(Names::x), &boxes = call.tensor(Names::boxes);
  const int64_t P = x.dim(1), Q = x.dim(2), height = y.dim(1), width = y.dim(2);
  const double threshold = call.number(Names::threshold);
  dispatchFloat(call, x.dtype, [&](auto zero) {
    using T = decltype(zero);
    parallelFor(x.dim(0), [&](int64_t r) {
      uint8_t* out = y.data<uint8_t>() + r * height * width;
      std::fill_n(out, height * width, uint8_t{0});
      const T *box = boxes.data<T>() + r * 4, *mask = x.data<T>() + r * P * Q;
      const Axis rows(static_cast<double>(box[1]), static_cast<double>(box[3]), P, height);
      const Axis columns(static_cast<double>(box[0]), static_cast<double>(box[2]), Q, width);
      const auto cell = [&](int64_t p, int64_t q) {
        return p >= 0 && p < P && q >= 0 && q < Q ? static_cast<double>(mask[p * Q + q]) : 0.0;
      };
      for (size_t i = 0; i < rows.pixels.size(); ++i) {
        const auto [p, down] = rows.pixels[i];
        uint8_t* line = out + (rows.begin + static_cast<int64_t>(i)) * width + columns.begin;
        for (size_t j = 0; j < columns.pixels.size(); ++j) {
          const auto [q, across] = columns.pixels[j];
          const double above = (1 - across) * cell(p, q) + across * cell(p, q + 1);
          const double below = (1 - across) * cell(p + 1, q) + across * cell(p + 1, q + 1);
          line[j] = (1 - down) * above + down * below >= threshold;
        }
      }
    });
  });
}

}  // namespace densecl::cpu

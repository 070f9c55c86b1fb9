// Boxes [x1, y1, x2, y2] as columns of doubles: of f32 coordinates the areas are then exact, and a box overlaps itself by exactly 1.
#pragma once
#include <cstdint>
#include <vector>

#include "isa.h"

namespace densecl::cpu {

struct BoxColumns {
  std::vector<double> x1, y1, x2, y2, area;

  template <class T, class Place>
  BoxColumns(const T* boxes, int64_t count, Place place) : x1(count), y1(count), x2(count), y2(count), area(count) {
    for (int64_t i = 0; i < count; ++i) {
      const T* box = boxes + place(i) * 4;
      x1[i] = box[0];
      y1[i] = box[1];
      x2[i] = box[2];
      y2[i] = box[3];
      area[i] = (x2[i] - x1[i]) * (y2[i] - y1[i]);
    }
  }
};

// Intersection over union of a box and box j of the columns, 0 where they do not meet.
struct BoxRow {
  double x1, y1, x2, y2, area;
  BoxRow(const BoxColumns& all, int64_t i) : x1(all.x1[i]), y1(all.y1[i]), x2(all.x2[i]), y2(all.y2[i]), area(all.area[i]) {}
};
INLINE double larger(double a, double b) { return a > b ? a : b; }
INLINE double smaller(double a, double b) { return a < b ? a : b; }
INLINE double overlap(const BoxRow& a, double x1, double y1, double x2, double y2, double area) {
  const double w = larger(smaller(a.x2, x2) - larger(a.x1, x1), 0.0), h = larger(smaller(a.y2, y2) - larger(a.y1, y1), 0.0);
  const double intersection = w * h, ratio = intersection / (a.area + area - intersection);
  return intersection > 0.0 ? ratio : 0.0;
}

}  // namespace densecl::cpu

// Boxes [x1, y1, x2, y2] in float. Products are rounded before they are added: a box overlaps itself by exactly 1, and two boxes each other
// by the same number in either order.
#pragma once
#include "platform.cuh"

namespace densecl::cuda {

struct Box {
  float x1, y1, x2, y2, area;
};

DEVICE float roundedProduct(float a, float b) {
#if defined(__CUDACC__)
  return __fmul_rn(a, b);
#else
  volatile float product = a * b;
  return product;
#endif
}

template <class T>
DEVICE Box boxAt(const T* boxes, int64_t i) {
  Box box = {static_cast<float>(boxes[i * 4]), static_cast<float>(boxes[i * 4 + 1]), static_cast<float>(boxes[i * 4 + 2]),
             static_cast<float>(boxes[i * 4 + 3]), 0};
  box.area = roundedProduct(box.x2 - box.x1, box.y2 - box.y1);
  return box;
}

// Intersection over union, 0 where they do not meet.
DEVICE float overlap(const Box& a, const Box& b) {
  const float w = fmaxf(fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1), 0.0f), h = fmaxf(fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1), 0.0f);
  const float intersection = roundedProduct(w, h);
  return intersection > 0 ? intersection / (a.area + b.area - intersection) : 0.0f;
}

}  // namespace densecl::cuda

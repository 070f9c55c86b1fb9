// A tensor is a typed, shaped view of the whole of a reference-counted storage. Everything is contiguous; images are
// NHWC, weights [O, KH, KW, I]. Reshape makes a second tensor on the same storage.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "error.h"

namespace densecl {

enum class DType : int { f32 = 0, f64 = 1, i32 = 2, u8 = 3, bf16 = 4, e4m3 = 5 };
constexpr int kDTypes = 6;

inline size_t itemSize(DType dtype) {
  switch (dtype) {
    case DType::f32: return 4;
    case DType::f64: return 8;
    case DType::i32: return 4;
    case DType::u8: return 1;
    case DType::bf16: return 2;
    case DType::e4m3: return 1;
  }
  return 0;
}

inline const char* dtypeName(DType dtype) {
  static const char* const names[] = {"f32", "f64", "i32", "u8", "bf16", "e4m3"};
  return names[static_cast<int>(dtype)];
}

struct Storage;  // allocator.h

struct Tensor {
  std::shared_ptr<Storage> storage;
  DType dtype;
  std::vector<int64_t> shape;

  int64_t dim(size_t axis) const { return shape[axis]; }
  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  // The leading axes folded into one: [N, H, W, C] is N*H*W rows of C.
  int64_t rows() const { return shape.empty() ? 1 : (shape.back() == 0 ? 0 : size() / shape.back()); }
  int64_t columns() const { return shape.empty() ? 1 : shape.back(); }
  template <class T>
  T* data() const;
  void* raw() const;
};

std::string describe(const Tensor& tensor);

}  // namespace densecl

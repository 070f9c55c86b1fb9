#include "values.h"

#include <cmath>

#include "../core/allocator.h"

namespace densecl {
namespace {

constexpr uint32_t kMaxRank = 64;

}  // namespace

int64_t integerOf(const Napi::Value& value, const char* name, double least, double most) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  REQUIRE(number >= least && number <= most && number == std::floor(number), "ARGUMENT",
          std::string("expected ") + name + " to be an integer from " + std::to_string(static_cast<int64_t>(least)) + " to " +
              std::to_string(static_cast<int64_t>(most)));
  return static_cast<int64_t>(number);
}

DType dtypeOf(const Napi::Value& value) { return static_cast<DType>(integerOf(value, "a dtype", 0, kDTypes - 1)); }

std::vector<int64_t> shapeOf(const Napi::Value& value, DType dtype) {
  REQUIRE(value.IsArray(), "ARGUMENT", "expected a shape to be an array");
  const Napi::Array array = value.As<Napi::Array>();
  REQUIRE(array.Length() <= kMaxRank, "SHAPE", "expected a shape of at most " + std::to_string(kMaxRank) + " dimensions");
  Tensor tensor{nullptr, dtype, std::vector<int64_t>(array.Length())};
  double bytes = static_cast<double>(itemSize(dtype));
  for (uint32_t i = 0; i < array.Length(); ++i) {
    tensor.shape[i] = integerOf(array.Get(i), "a dimension of a shape", 0, kLargest);
    bytes *= static_cast<double>(std::max<int64_t>(1, tensor.shape[i]));
  }
  REQUIRE(bytes < 9.0e15, "OUT_OF_MEMORY", "a tensor " + describe(tensor) + " is larger than any memory");
  return tensor.shape;
}

std::pair<void*, size_t> bytesOf(const Napi::Value& value) {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  REQUIRE(napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) == napi_ok, "ARGUMENT",
          "expected a typed array");
  static const size_t sizes[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};
  REQUIRE(type < std::size(sizes), "ARGUMENT", "expected a typed array of integers or of f32 or f64");
  return {data, length * sizes[type]};
}

std::pair<const double*, size_t> numbersOf(const Napi::Value& value) {
  REQUIRE(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_float64_array, "ARGUMENT",
          "run: expected a Float64Array of handles and one of numbers");
  const auto [data, bytes] = bytesOf(value);
  return {static_cast<const double*>(data), bytes / sizeof(double)};
}

size_t offsetOf(const Napi::Value& value, const Tensor& tensor) {
  return static_cast<size_t>(integerOf(value, "an offset", 0, static_cast<double>(tensor.storage->bytes)));
}

Napi::Value arrayOf(Napi::Env env, const std::vector<std::string>& names) {
  Napi::Array result = Napi::Array::New(env, names.size());
  for (uint32_t i = 0; i < names.size(); ++i) result.Set(i, names[i]);
  return result;
}

}  // namespace densecl

#include "signature.h"

#include <algorithm>
#include <cctype>
#include <cmath>

#include "call.h"

namespace densecl {
namespace {

constexpr int kAny = -1;      // `_`
constexpr int kLiteral = -2;  // a number
constexpr double kLargest = 9007199254740991.0, kLargest32 = 2147483647.0;

// A name of the types of one op, by its place in their symbol table.
struct Dimension {
  int symbol;
  int64_t size;
  bool filled;  // not of size 0
};

struct Type {
  std::string dtype;
  int dtypeSymbol = kAny, pack = kAny;
  bool packed = false;  // any number of dimensions in front of `dimensions`
  std::vector<Dimension> dimensions;
};

// The types of one op's tensors.
struct Types {
  std::vector<std::string> symbols;
  std::vector<Type> of;

  explicit Types(const Signature& signature) {
    for (const TensorParameter& parameter : signature.tensors) of.push_back(parse(parameter.type));
  }

 private:
  int symbol(const std::string& name) {
    if (name == "_") return kAny;
    for (size_t i = 0; i < symbols.size(); ++i)
      if (symbols[i] == name) return static_cast<int>(i);
    symbols.push_back(name);
    return static_cast<int>(symbols.size()) - 1;
  }

  Type parse(const std::string& text) {
    const size_t open = text.find('[');
    REQUIRE(open != std::string::npos && text.back() == ']', "INTERNAL", "ops.def: not a type: " + text);
    Type type;
    type.dtype = text.substr(0, open);
    if (type.dtype.size() == 1 && type.dtype != "_") type.dtypeSymbol = symbol("dtype " + type.dtype);
    std::string name;
    for (size_t at = open + 1; at < text.size(); ++at) {
      if (text[at] != ',' && text[at] != ']') {
        name += text[at];
        continue;
      }
      if (name.size() > 3 && name.compare(name.size() - 3, 3, "...") == 0) {
        REQUIRE(type.dimensions.empty() && !type.packed, "INTERNAL", "ops.def: three dots come first: " + text);
        type.packed = true;
        name.resize(name.size() - 3);
        type.pack = symbol(name == "_" ? name : name + "...");
        name.clear();
        continue;
      }
      const bool filled = !name.empty() && name.back() == '+';
      if (filled) name.pop_back();
      if (!name.empty() && std::isdigit(static_cast<unsigned char>(name[0])) != 0) {
        type.dimensions.push_back({kLiteral, std::stoll(name), filled});
      } else if (!name.empty()) {
        type.dimensions.push_back({symbol(name), 0, filled});
      }
      name.clear();
    }
    return type;
  }
};

bool isFloating(DType dtype) { return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16; }
DType accumulatorOf(DType dtype) { return dtype == DType::bf16 ? DType::f32 : dtype; }

// What the symbols of one call stand for, and the parameter that said so.
class Binding {
 public:
  Binding(const char* op, const Types& types) : op_(op), types_(types), bound_(types.symbols.size()) {}

  void check(const TensorParameter& parameter, const Type& type, const Tensor& tensor) {
    parameter_ = &parameter;
    tensor_ = &tensor;
    checkDType(type);
    const size_t own = type.dimensions.size(), rank = tensor.shape.size();
    if (rank < own || (!type.packed && rank != own)) refuse("SHAPE", "");
    const size_t packed = rank - own;
    if (type.pack >= 0) {
      Bound& bound = bound_[static_cast<size_t>(type.pack)];
      if (bound.from == nullptr) bound = {parameter.name, 0, &tensor, packed};
      const bool same = bound.length == packed &&
                        std::equal(tensor.shape.begin(), tensor.shape.begin() + static_cast<int64_t>(packed), bound.tensor->shape.begin());
      if (!same) refuse("SHAPE", " with the leading dimensions of " + std::string(bound.from) + " " + describe(*bound.tensor));
    }
    for (size_t i = 0; i < own; ++i) {
      const auto& [symbol, literal, filled] = type.dimensions[i];
      const int64_t size = tensor.shape[packed + i];
      if (symbol == kLiteral && size != literal) refuse("SHAPE", "");
      if (filled && size == 0) refuse("SHAPE", " with at least one element along axis " + std::to_string(packed + i));
      if (symbol < 0) continue;
      Bound& bound = bound_[static_cast<size_t>(symbol)];
      if (bound.from == nullptr) bound = {parameter.name, size, &tensor, 0};
      if (bound.value != size)
        refuse("SHAPE",
               " with " + types_.symbols[static_cast<size_t>(symbol)] + " = " + std::to_string(bound.value) + " as in " + bound.from);
    }
  }

 private:
  struct Bound {
    const char* from = nullptr;
    int64_t value = 0;  // a size, or a dtype
    const Tensor* tensor = nullptr;
    size_t length = 0;  // of a pack
  };

  void checkDType(const Type& type) {
    const DType actual = tensor_->dtype;
    if (type.dtypeSymbol < 0) {
      if (type.dtype != "_" && type.dtype != dtypeName(actual)) refuse("DTYPE", "");
      return;
    }
    const bool accumulates = type.dtype == "A";
    if ((type.dtype == "T" || accumulates) && !isFloating(actual)) refuse("DTYPE", " of a floating dtype");
    if (accumulates && floating_.from != nullptr) {
      const DType expected = accumulatorOf(static_cast<DType>(floating_.value));
      if (actual != expected)
        refuse("DTYPE", std::string(" of dtype ") + dtypeName(expected) + ", in which " + floating_.from + " is accumulated,");
      return;
    }
    Bound& bound = bound_[static_cast<size_t>(type.dtypeSymbol)];
    if (bound.from == nullptr) bound = {parameter_->name, static_cast<int64_t>(actual), tensor_, 0};
    if (type.dtype == "T") floating_ = bound;
    if (bound.value != static_cast<int64_t>(actual))
      refuse("DTYPE", std::string(" of dtype ") + dtypeName(static_cast<DType>(bound.value)) + " as " + bound.from);
  }

  [[noreturn]] void refuse(const char* code, const std::string& why) const {
    throw Error(code,
                std::string(op_) + ": expected " + parameter_->name + " " + parameter_->type + why + " but received " + describe(*tensor_));
  }

  const char* op_;
  const Types& types_;
  std::vector<Bound> bound_;
  Bound floating_;
  const TensorParameter* parameter_ = nullptr;
  const Tensor* tensor_ = nullptr;
};

const Types& typesOf(int index) {
  static const std::vector<Types> all(signatures().begin(), signatures().end());
  return all[static_cast<size_t>(index)];
}

}  // namespace

void Signature::check(const Call& call) const {
  const Types& types = typesOf(call.index);
  Binding binding(name, types);
  const auto checkTensors = [&](bool floating) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorParameter& parameter = tensors[i];
      if ((types.of[i].dtype == "T") != floating) continue;
      const bool required = parameter.presence == Presence::required || parameter.presence == Presence::list;
      for (uint32_t k = call.firstTensor[i]; k < call.firstTensor[i + 1]; ++k) {
        if (call.tensors[k] != nullptr)
          binding.check(parameter, types.of[i], *call.tensors[k]);
        else
          REQUIRE(!required, "ARGUMENT", std::string(name) + ": the tensor " + parameter.name + " is missing");
      }
    }
  };
  // What the others are accumulated in is known when T is.
  checkTensors(true);
  checkTensors(false);
  for (size_t i = 0; i < numbers.size(); ++i) {
    const auto& [parameter, kind, least, most] = numbers[i];
    for (uint32_t k = call.firstNumber[i]; k < call.firstNumber[i + 1]; ++k) {
      const double value = call.numbers[k];
      const auto expect = [&, parameter = parameter](bool holds, const std::string& what) {
        REQUIRE(holds, "ARGUMENT",
                std::string(name) + ": expected " + parameter + " to be " + what + " but received " + std::to_string(value));
      };
      if (kind == NumberKind::flag) expect(value == 0 || value == 1, "true or false");
      if (kind == NumberKind::integer || kind == NumberKind::integers)
        expect(value == std::floor(value) && value >= least && value <= most,
               "an integer of at least " + std::to_string(static_cast<int64_t>(least)) + " and at most " +
                   std::to_string(static_cast<int64_t>(most)));
    }
  }
}

const std::vector<Signature>& signatures() {
#define OUT(name, type) TensorParameter{#name, type, Presence::required, true}
#define IN(name, type) TensorParameter{#name, type, Presence::required, false}
#define OPTIONAL(name, type) TensorParameter{#name, type, Presence::optional, false}
#define OPTIONAL_OUT(name, type) TensorParameter{#name, type, Presence::optional, true}
#define LIST(name, type) TensorParameter{#name, type, Presence::list, false}
#define OPTIONAL_LIST(name, type) TensorParameter{#name, type, Presence::optionalList, false}
#define REAL(name) NumberParameter{#name, NumberKind::real, 0, 0}
#define FLAG(name) NumberParameter{#name, NumberKind::flag, 0, 0}
#define INTEGER(name, least) NumberParameter{#name, NumberKind::integer, least, kLargest32}
#define LARGE_INTEGER(name, least) NumberParameter{#name, NumberKind::integer, least, kLargest}
#define INTEGERS(name, least) NumberParameter{#name, NumberKind::integers, least, kLargest}
#define TENSORS(...) {__VA_ARGS__},
#define NUMBERS(...) {__VA_ARGS__}
#define OP(name, ...) {#name, __VA_ARGS__},
  static const std::vector<Signature> all = {
#include "ops.def"
  };
  return all;
}

}  // namespace densecl

#include "calls.h"

#include <string>

#include "../core/device.h"
#include "values.h"

namespace densecl {
namespace {

// Takes values off an array that JavaScript made.
struct Reader {
  const double* at;
  size_t left;
  const char* op;

  double next() {
    REQUIRE(left > 0, "INTERNAL", std::string(op) + ": fewer values than its row of ops.def declares");
    --left;
    return *at++;
  }
  template <class Add>
  void read(bool isList, Add add) {
    for (double count = isList ? next() : 1; count > 0; --count) add(next());
  }
};

}  // namespace

Napi::Value runOp(const Napi::CallbackInfo& info, const Handles& handles, Steps& steps) {
  const auto index = static_cast<size_t>(integerOf(info[0], "an op's number", 0, static_cast<double>(signatures().size()) - 1));
  const Signature& signature = signatures()[index];
  const auto given = numbersOf(info[1]), numbers = numbersOf(info[2]);
  Call call{signature.name, static_cast<int>(index), {}, {}, {}, {}};
  Reader tensorReader{given.first, given.second, signature.name}, numberReader{numbers.first, numbers.second, signature.name};
  call.tensors.reserve(given.second);
  const auto addTensor = [&](double handle) { call.tensors.push_back(handle != handle ? nullptr : &handles.get(handle, call.op)); };
  const auto addNumber = [&](double number) { call.numbers.push_back(number); };
  for (const TensorParameter& parameter : signature.tensors) {
    call.firstTensor.push_back(static_cast<uint32_t>(call.tensors.size()));
    tensorReader.read(parameter.presence == Presence::list || parameter.presence == Presence::optionalList, addTensor);
  }
  for (const NumberParameter& parameter : signature.numbers) {
    call.firstNumber.push_back(static_cast<uint32_t>(call.numbers.size()));
    numberReader.read(parameter.kind == NumberKind::integers, addNumber);
  }
  REQUIRE(tensorReader.left == 0 && numberReader.left == 0, "INTERNAL", std::string(call.op) + ": more than its row of ops.def declares");
  call.firstTensor.push_back(static_cast<uint32_t>(call.tensors.size()));
  call.firstNumber.push_back(static_cast<uint32_t>(call.numbers.size()));
  Device* device = nullptr;
  for (const Tensor* tensor : call.tensors) {
    if (tensor == nullptr) continue;
    if (device == nullptr) device = &tensor->storage->device;
    REQUIRE(device == &tensor->storage->device, "DEVICE",
            std::string(call.op) + ": expected all tensors on one device but received " + device->name + " and " +
                tensor->storage->device.name + " (" + describe(*tensor) + ")");
  }
  REQUIRE(device != nullptr, "INTERNAL", std::string(call.op) + ": no tensors");
  signature.check(call);
  steps.called(call);
  for (size_t p = 0; p < signature.tensors.size(); ++p)
    if (signature.tensors[p].mayBeWritten())
      for (uint32_t k = call.firstTensor[p]; k < call.firstTensor[p + 1]; ++k)
        if (call.tensors[k] != nullptr) call.tensors[k]->storage->written();
  device->run(index, call);
  return info.Env().Undefined();
}

Napi::Value listFormulas(Napi::Env env) {
  static const char* const names[] = {
#define BINARY(name, value) "binary " #name,
#define COMPARISON(name, value) "compare " #name,
#define UNARY(name, value, derivative) "unary " #name,
#include "../core/maps.def"
  };
  Napi::Array all = Napi::Array::New(env);
  for (const char* name : names) all.Set(all.Length(), name);
  return all;
}

Napi::Value listSignatures(Napi::Env env) {
  Napi::Array all = Napi::Array::New(env, signatures().size());
  for (uint32_t i = 0; i < signatures().size(); ++i) {
    const Signature& signature = signatures()[i];
    std::string text = std::string(signature.name) + "(";
    const auto join = [&](const char* name, const char* kind) { text += (text.back() == '(' ? "" : ",") + std::string(name) + kind; };
    const char* const presences[] = {"", "?", "*", "?*"};
    for (const TensorParameter& parameter : signature.tensors) join(parameter.name, presences[static_cast<int>(parameter.presence)]);
    text += ")(";
    for (const NumberParameter& parameter : signature.numbers) join(parameter.name, parameter.kind == NumberKind::integers ? "*" : "");
    all.Set(i, text + ")");
  }
  return all;
}

}  // namespace densecl

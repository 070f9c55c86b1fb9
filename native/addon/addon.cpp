// The N-API surface: per-environment state, dispatch and error conversion; no maths. Exceptions are used (and enabled in
// node-addon-api) because no JavaScript is called from native code, so no foreign value can be thrown through it.
#include <napi.h>

#include <cstdlib>

#include "../core/device.h"
#include "../core/parallel.h"
#include "../core/signals.h"
#include "../cpu/augment.h"
#include "../cpu/isa.h"
#include "../jpeg/decode.h"
#include "collectives.h"
#include "handles.h"
#include "steps.h"
#include "values.h"
#if defined(DENSECL_SIMT)
#include "../simt/alarms.h"
#endif

// The builds pass the version as it stands in package.json, without quotes.
#define DENSECL_TEXT(value) DENSECL_QUOTED(value)
#define DENSECL_QUOTED(value) #value

namespace densecl {
namespace {

constexpr double kMaxThreads = 1024;
constexpr double kMostJpegPixels = 65535;  // of a side
constexpr double kMostViewFloats = 2147483647;

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

class Addon : public Napi::Addon<Addon> {
 public:
  Addon(Napi::Env, Napi::Object exports) {
    DefineAddon(exports, {
                             InstanceMethod("initialize", &Addon::initialize),
                             InstanceMethod("version", &Addon::guard<&Addon::version>),
                             InstanceMethod("create", &Addon::guard<&Addon::create>),
                             InstanceMethod("view", &Addon::guard<&Addon::view>),
                             InstanceMethod("dispose", &Addon::guard<&Addon::dispose>),
                             InstanceMethod("write", &Addon::guard<&Addon::write>),
                             InstanceMethod("read", &Addon::guard<&Addon::read>),
                             InstanceMethod("run", &Addon::guard<&Addon::run>),
                             InstanceMethod("opSignatures", &Addon::guard<&Addon::opSignatures>),
                             InstanceMethod("formulas", &Addon::guard<&Addon::formulas>),
                             InstanceMethod("memory", &Addon::guard<&Addon::memory>),
                             InstanceMethod("resetPeakMemory", &Addon::guard<&Addon::resetPeakMemory>),
                             InstanceMethod("setMemoryLimit", &Addon::guard<&Addon::setMemoryLimit>),
                             InstanceMethod("trimMemory", &Addon::guard<&Addon::trimMemory>),
                             InstanceMethod("setThreads", &Addon::guard<&Addon::setThreadCount>),
                             InstanceMethod("threads", &Addon::guard<&Addon::threadCount>),
                             InstanceMethod("instructionSet", &Addon::guard<&Addon::instructionSet>),
                             InstanceMethod("listenForSignals", &Addon::guard<&Addon::listen>),
                             InstanceMethod("heardSignal", &Addon::guard<&Addon::heard>),
                             InstanceMethod("deviceNames", &Addon::guard<&Addon::listDevices>),
                             InstanceMethod("cudaBuild", &Addon::guard<&Addon::describeCudaBuild>),
                             InstanceMethod("describeDevice", &Addon::guard<&Addon::describeDevice>),
                             InstanceMethod("deviceTraits", &Addon::guard<&Addon::deviceTraits>),
                             InstanceMethod("avoidFamilies", &Addon::guard<&Addon::avoidFamilies>),
                             InstanceMethod("synchronize", &Addon::guard<&Addon::synchronize>),
                             InstanceMethod("pin", &Addon::guard<&Addon::pin>),
                             InstanceMethod("unpin", &Addon::guard<&Addon::unpin>),
                             InstanceMethod("startRead", &Addon::guard<&Addon::startRead>),
                             InstanceMethod("finishRead", &Addon::guard<&Addon::finishRead>),
                             InstanceMethod("startTrace", &Addon::guard<&Addon::startTrace>),
                             InstanceMethod("endTrace", &Addon::guard<&Addon::endTrace>),
                             InstanceMethod("startRecording", &Addon::guard<&Addon::startRecording>),
                             InstanceMethod("endRecording", &Addon::guard<&Addon::endRecording>),
                             InstanceMethod("replay", &Addon::guard<&Addon::replay>),
                             InstanceMethod("endGraph", &Addon::guard<&Addon::endGraph>),
                             InstanceMethod("startUpload", &Addon::guard<&Addon::startUpload>),
                             InstanceMethod("useUpload", &Addon::guard<&Addon::useUpload>),
                             InstanceMethod("finishUpload", &Addon::guard<&Addon::finishUpload>),
                             InstanceMethod("release", &Addon::guard<&Addon::release>),
                             InstanceMethod("decodeJpeg", &Addon::guard<&Addon::decodeJpeg>),
                             InstanceMethod("renderView", &Addon::guard<&Addon::renderView>),
                             InstanceMethod("recordEvent", &Addon::guard<&Addon::recordEvent>),
                             InstanceMethod("elapsed", &Addon::guard<&Addon::elapsed>),
                             InstanceMethod("commLibrary", &Addon::guard<&Addon::describeComm>),
                             InstanceMethod("commError", &Addon::guard<&Addon::describeCommError>),
                             InstanceMethod("openMpi", &Addon::guard<&Addon::openMpi>),
#if defined(DENSECL_NCCL)
                             InstanceMethod("loadNccl", &Addon::guard<&Addon::loadNccl>),
                             InstanceMethod("ncclId", &Addon::guard<&Addon::ncclId>),
                             InstanceMethod("busId", &Addon::guard<&Addon::describeBus>),
                             InstanceMethod("openNccl", &Addon::guard<&Addon::openNccl>),
#endif
                             InstanceMethod("startCollective", &Addon::guard<&Addon::startCollective>),
                             InstanceMethod("joinCollective", &Addon::guard<&Addon::joinCollective>),
                             InstanceMethod("closeComm", &Addon::guard<&Addon::closeCommunication>),
                             InstanceMethod("leave", &Addon::guard<&Addon::leave>),
#if defined(DENSECL_SIMT)
                             InstanceMethod("simtShuffle", &Addon::guard<&Addon::simtShuffle>),
                             InstanceMethod("simtCapability", &Addon::guard<&Addon::simtCapability>),
                             InstanceMethod("simtAlarm", &Addon::guard<&Addon::simtAlarm>),
#endif
                         });
  }

 private:
  using Method = Napi::Value (Addon::*)(const Napi::CallbackInfo&);

  // initialize(DenseclError): the class whose instances this environment throws, made as new DenseclError(code, message).
  void initialize(const Napi::CallbackInfo& info) {
    if (!info[0].IsFunction()) throw Napi::TypeError::New(info.Env(), "initialize: expected the class of errors");
    errorClass_ = Napi::Persistent(info[0].As<Napi::Function>());
  }

  // Of the package that this was built from: the loader compares it with its own.
  Napi::Value version(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), DENSECL_TEXT(DENSECL_VERSION)); }

  template <Method method>
  Napi::Value guard(const Napi::CallbackInfo& info) {
    try {
      return (this->*method)(info);
    } catch (const Error& error) {
      raise(info.Env(), error.code, error.what());
    } catch (const std::bad_alloc&) {
      raise(info.Env(), "OUT_OF_MEMORY", "out of memory in native code");
    } catch (const Napi::Error& error) {
      // An argument of another type than Node-API was asked for.
      const std::string message = error.Message();
      raise(info.Env(), "ARGUMENT", message.c_str());
    } catch (const std::exception& error) {
      raise(info.Env(), "INTERNAL", error.what());
    }
    return Napi::Value();
  }

  void raise(Napi::Env env, const char* code, const char* message) {
    raise(env, [&] { return errorClass_.New({Napi::String::New(env, code), Napi::String::New(env, message)}); });
  }

  // Throws in JavaScript. An environment that is being ended, or that has an exception already, takes none: node-addon-api would
  // then throw out of its own wrapper and end the process.
  template <class Make>
  static void raise(napi_env env, Make make) {
    try {
      napi_throw(env, make());
    } catch (...) {
    }
  }

  // A device by the name in an argument; names are few and fixed, so the last one is remembered.
  Device& deviceOf(const Napi::Value& value) {
    const std::string name = value.IsUndefined() ? "cpu" : value.As<Napi::String>().Utf8Value();
    if (device_ == nullptr || device_->name != name) device_ = &findDevice(name);
    return *device_;
  }

  // create(dtype, shape, device) -> handle of uninitialised memory
  Napi::Value create(const Napi::CallbackInfo& info) {
    Tensor tensor;
    tensor.dtype = dtypeOf(info[0]);
    tensor.shape = shapeOf(info[1], tensor.dtype);
    Device& device = deviceOf(info[2]);
    try {
      tensor.storage = std::make_shared<Storage>(device, tensor.size() * itemSize(tensor.dtype));
    } catch (const Error& error) {
      throw Error(error.code, "tensor " + describe(tensor) + ": " + error.what());
    }
    return Napi::Number::New(info.Env(), handles_.insert(std::move(tensor)));
  }

  // view(handle, shape) -> a second handle on the same storage
  Napi::Value view(const Napi::CallbackInfo& info) {
    const Tensor& source = handles_.get(info[0].ToNumber().DoubleValue(), "view");
    Tensor tensor{source.storage, source.dtype, shapeOf(info[1], source.dtype)};
    REQUIRE(tensor.size() == source.size(), "SHAPE", "view: " + describe(source) + " cannot be seen as " + describe(tensor));
    return Napi::Number::New(info.Env(), handles_.insert(std::move(tensor)));
  }

  Napi::Value dispose(const Napi::CallbackInfo& info) {
    handles_.dispose(info[0].ToNumber().DoubleValue());
    return info.Env().Undefined();
  }

  // write(handle, typedArray) and read(handle, typedArray) copy all of it; lengths must agree
  Napi::Value write(const Napi::CallbackInfo& info) { return copy(info, true); }
  Napi::Value read(const Napi::CallbackInfo& info) { return copy(info, false); }
  Napi::Value copy(const Napi::CallbackInfo& info, bool write) {
    const Tensor& tensor = handles_.get(info[0].ToNumber().DoubleValue(), write ? "write" : "read");
    const auto bytes = bytesOf(info[1]);
    REQUIRE(bytes.second == tensor.size() * itemSize(tensor.dtype), "SHAPE",
            "copy: a tensor " + describe(tensor) + " has another size than " + std::to_string(bytes.second) + " bytes");
    Device& device = tensor.storage->device;
    if (bytes.second == 0) return info.Env().Undefined();
    if (write) {
      tensor.storage->written();
      device.upload(tensor.raw(), bytes.first, bytes.second);
    } else {
      device.download(bytes.first, tensor.raw(), bytes.second);
    }
    return info.Env().Undefined();
  }

  // run(index, handles (NaN for an absent one): Float64Array, numbers: Float64Array), parameters in the order of ops.def, in front of
  // those of a list their count.
  Napi::Value run(const Napi::CallbackInfo& info) {
    const auto index = static_cast<size_t>(integerOf(info[0], "an op's number", 0, static_cast<double>(signatures().size()) - 1));
    const Signature& signature = signatures()[index];
    const auto handles = numbersOf(info[1]), numbers = numbersOf(info[2]);
    Call call{signature.name, static_cast<int>(index), {}, {}, {}, {}};
    Reader tensorReader{handles.first, handles.second, signature.name}, numberReader{numbers.first, numbers.second, signature.name};
    call.tensors.reserve(handles.second);
    const auto addTensor = [&](double handle) { call.tensors.push_back(handle != handle ? nullptr : &handles_.get(handle, call.op)); };
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
    for (size_t p = 0; p < signature.tensors.size(); ++p)
      if (signature.tensors[p].mayBeWritten())
        for (uint32_t k = call.firstTensor[p]; k < call.firstTensor[p + 1]; ++k)
          if (call.tensors[k] != nullptr) call.tensors[k]->storage->written();
    device->run(index, call);
    return info.Env().Undefined();
  }

  // The formulas of maps.def in their order, each after the op that is called with its place.
  Napi::Value formulas(const Napi::CallbackInfo& info) {
    static const char* const names[] = {
#define BINARY(name, value) "binary " #name,
#define COMPARISON(name, value) "compare " #name,
#define UNARY(name, value, derivative) "unary " #name,
#include "../core/maps.def"
    };
    Napi::Array all = Napi::Array::New(info.Env());
    for (const char* name : names) all.Set(all.Length(), name);
    return all;
  }

  // Every op as scripts/nativeOps.mjs writes it: name(tensors)(numbers).
  Napi::Value opSignatures(const Napi::CallbackInfo& info) {
    Napi::Array all = Napi::Array::New(info.Env(), signatures().size());
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

  Napi::Value memory(const Napi::CallbackInfo& info) {
    const MemoryStats stats = deviceOf(info[0]).allocator.stats();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("live", static_cast<double>(stats.live));
    result.Set("peak", static_cast<double>(stats.peak));
    result.Set("cached", static_cast<double>(stats.cached));
    result.Set("limit", static_cast<double>(stats.limit));
    result.Set("handles", static_cast<double>(handles_.live()));
    return result;
  }

  Napi::Value resetPeakMemory(const Napi::CallbackInfo& info) {
    deviceOf(info[0]).allocator.resetPeak();
    return info.Env().Undefined();
  }
  Napi::Value setMemoryLimit(const Napi::CallbackInfo& info) {
    deviceOf(info[1]).allocator.setLimit(static_cast<size_t>(integerOf(info[0], "a memory limit", 0, kLargest)));
    return info.Env().Undefined();
  }
  Napi::Value trimMemory(const Napi::CallbackInfo& info) {
    deviceOf(info[0]).allocator.trim();
    return info.Env().Undefined();
  }
  Napi::Value setThreadCount(const Napi::CallbackInfo& info) {
    setThreads(static_cast<int>(integerOf(info[0], "a number of threads", 0, kMaxThreads)));
    return info.Env().Undefined();
  }
  Napi::Value threadCount(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), threads()); }
  Napi::Value instructionSet(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), cpu::instructionSet()); }
  // listenForSignals(message)
  Napi::Value listen(const Napi::CallbackInfo& info) {
    listenForSignals(info[0].As<Napi::String>().Utf8Value());
    return info.Env().Undefined();
  }
  Napi::Value heard(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), heardSignal()); }
  Napi::Value listDevices(const Napi::CallbackInfo& info) { return arrayOf(info.Env(), deviceNames()); }
  // deviceTraits(device): an object with the fields of Traits
  Napi::Value deviceTraits(const Napi::CallbackInfo& info) {
    const Traits traits = deviceOf(info[0]).traits();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("kind", traits.kind);
    result.Set("model", traits.model);
    result.Set("capability", traits.capability);
    result.Set("multiprocessors", traits.multiprocessors);
    result.Set("computes", traits.computes);
    result.Set("memory", static_cast<double>(traits.memory));
    result.Set("hostMemory", traits.hostMemory);
    result.Set("asynchronous", traits.asynchronous);
    result.Set("simulated", traits.simulated);
    result.Set("recordable", traits.recordable);
    result.Set("rendersViews", traits.rendersViews);
    result.Set("tf32", traits.tf32);
    result.Set("tunable", traits.tunable);
    result.Set("epilogues", traits.epilogues);
    result.Set("prologues", traits.prologues);
    result.Set("byteIndices", traits.byteIndices);
    result.Set("normsResults", traits.normsResults);
    result.Set("vectorBytes", traits.vectorBytes);
    result.Set("statisticsRows", traits.statisticsRows);
    std::vector<std::string> dtypes;
    for (DType dtype : traits.dtypes) dtypes.push_back(dtypeName(dtype));
    result.Set("dtypes", arrayOf(info.Env(), dtypes));
    result.Set("usualDType", dtypeName(traits.usualDType));
    result.Set("families", arrayOf(info.Env(), traits.families));
    return result;
  }
  // avoidFamilies(device, names)
  Napi::Value avoidFamilies(const Napi::CallbackInfo& info) {
    const Napi::Array array = info[1].As<Napi::Array>();
    std::vector<std::string> names(array.Length());
    for (uint32_t i = 0; i < array.Length(); ++i) names[i] = array.Get(i).ToString().Utf8Value();
    deviceOf(info[0]).avoidFamilies(names);
    return info.Env().Undefined();
  }
  Napi::Value describeCudaBuild(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), cudaBuild()); }
  Napi::Value describeDevice(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), deviceOf(info[0]).describe()); }
  Napi::Value synchronize(const Napi::CallbackInfo& info) {
    deviceOf(info[0]).synchronize();
    return info.Env().Undefined();
  }

  // pin(typedArray, device), unpin(typedArray, device)
  Napi::Value pin(const Napi::CallbackInfo& info) {
    const auto bytes = bytesOf(info[0]);
    deviceOf(info[1]).pin(bytes.first, bytes.second);
    return info.Env().Undefined();
  }
  Napi::Value unpin(const Napi::CallbackInfo& info) {
    deviceOf(info[1]).unpin(bytesOf(info[0]).first);
    return info.Env().Undefined();
  }
  // startUpload(handle, typedArray, offset): to the tensor's bytes from `offset` on
  Napi::Value startUpload(const Napi::CallbackInfo& info) {
    const Tensor& tensor = handles_.get(info[0].ToNumber().DoubleValue(), "startUpload");
    const auto bytes = bytesOf(info[1]);
    const size_t offset = offsetOf(info[2], tensor);
    REQUIRE(
        bytes.second <= tensor.storage->bytes - offset, "SHAPE",
        "startUpload: " + std::to_string(bytes.second) + " bytes at " + std::to_string(offset) + " do not fit into " + describe(tensor));
    tensor.storage->written();
    if (bytes.second != 0) tensor.storage->device.startUpload(static_cast<char*>(tensor.raw()) + offset, bytes.first, bytes.second);
    return info.Env().Undefined();
  }
  Napi::Value useUpload(const Napi::CallbackInfo& info) { return withTarget(info, &Device::useUpload); }
  Napi::Value finishUpload(const Napi::CallbackInfo& info) { return withTarget(info, &Device::finishUpload); }
  Napi::Value release(const Napi::CallbackInfo& info) { return withTarget(info, &Device::release); }
  Napi::Value withTarget(const Napi::CallbackInfo& info, void (Device::*method)(void*)) {
    const Tensor& tensor = handles_.get(info[0].ToNumber().DoubleValue(), "upload");
    (tensor.storage->device.*method)(static_cast<char*>(tensor.raw()) + offsetOf(info[1], tensor));
    return info.Env().Undefined();
  }

  // startRead(handle) -> ticket; finishRead(ticket, typedArray)
  Napi::Value startRead(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), reads_.start(handles_.get(info[0].ToNumber().DoubleValue(), "read")));
  }
  Napi::Value finishRead(const Napi::CallbackInfo& info) {
    const auto to = bytesOf(info[1]);
    reads_.finish(ticketOf(info), to.first, to.second);
    return info.Env().Undefined();
  }

  static uint32_t ticketOf(const Napi::CallbackInfo& info) { return info[0].ToNumber().Uint32Value(); }
  template <class Method>
  Napi::Value withStep(const Napi::CallbackInfo& info, Method method) {
    (steps_.*method)(ticketOf(info));
    return info.Env().Undefined();
  }
  // startTrace(device) -> step
  Napi::Value startTrace(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), steps_.begin(deviceOf(info[0]))); }
  Napi::Value endTrace(const Napi::CallbackInfo& info) { return withStep(info, &Steps::endTrace); }
  Napi::Value startRecording(const Napi::CallbackInfo& info) { return withStep(info, &Steps::startRecording); }
  Napi::Value replay(const Napi::CallbackInfo& info) { return withStep(info, &Steps::replay); }
  Napi::Value endGraph(const Napi::CallbackInfo& info) { return withStep(info, &Steps::end); }
  // endRecording(step) -> what was planned
  Napi::Value endRecording(const Napi::CallbackInfo& info) {
    const Steps::Planned planned = steps_.endRecording(ticketOf(info));
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("launches", static_cast<double>(planned.launches));
    result.Set("arena", static_cast<double>(planned.plan->bytes()));
    result.Set("live", static_cast<double>(planned.plan->live()));
    result.Set("total", static_cast<double>(planned.plan->total()));
    return result;
  }

  // decodeJpeg(bytes, [width, height] of the image, denominator, [x, y, width, height] of the reduced image, out)
  Napi::Value decodeJpeg(const Napi::CallbackInfo& info) {
    const auto numbers = [](const Napi::Value& value, uint32_t* to, uint32_t count) {
      const Napi::Array array = value.As<Napi::Array>();
      for (uint32_t i = 0; i < count; ++i) to[i] = static_cast<uint32_t>(integerOf(array.Get(i), "a size of a JPEG", 0, kMostJpegPixels));
    };
    uint32_t size[2], part[4];
    numbers(info[1], size, 2);
    numbers(info[3], part, 4);
    const auto denominator = static_cast<uint32_t>(integerOf(info[2], "the denominator of a JPEG's size", 1, 8));
    const auto bytes = bytesOf(info[0]), out = bytesOf(info[4]);
    const auto reduced = [&](uint32_t length) { return (length + denominator - 1) / denominator; };
    REQUIRE((denominator & (denominator - 1)) == 0, "ARGUMENT", "decodeJpeg: expected a denominator of 1, 2, 4 or 8");
    REQUIRE(part[2] > 0 && part[3] > 0 && part[0] + part[2] <= reduced(size[0]) && part[1] + part[3] <= reduced(size[1]), "ARGUMENT",
            "decodeJpeg: expected a part of the image");
    REQUIRE(out.second == size_t{3} * part[2] * part[3], "SHAPE", "decodeJpeg: expected 3 bytes for each pixel of the part");
    jpeg::decode(static_cast<const uint8_t*>(bytes.first), bytes.second, size[0], size[1], static_cast<int>(denominator),
                 {part[0], part[1], part[2], part[3]}, static_cast<uint8_t*>(out.first));
    return info.Env().Undefined();
  }

  // renderView(out, [height, width] of the view, pixels, row of the table of the op augment)
  Napi::Value renderView(const Napi::CallbackInfo& info) {
    const Napi::Array array = info[1].As<Napi::Array>();
    const auto side = [&](uint32_t i) { return static_cast<int>(integerOf(array.Get(i), "a side of a view", 1, kMostViewFloats)); };
    const int height = side(0), width = side(1);
    const auto out = bytesOf(info[0]), pixels = bytesOf(info[2]);
    const auto row = numbersOf(info[3]);
    const double floats = 3.0 * height * width;
    REQUIRE(floats <= kMostViewFloats && static_cast<double>(out.second) == floats * sizeof(float), "SHAPE",
            "renderView: expected 3 floats for each pixel of the view, fewer than 2^31");
    REQUIRE(row.second == cpu::kViewNumbers, "SHAPE", "renderView: expected a row of " + std::to_string(cpu::kViewNumbers) + " numbers");
    cpu::renderView(static_cast<float*>(out.first), 0, height, width, static_cast<const uint8_t*>(pixels.first), pixels.second, row.first);
    return info.Env().Undefined();
  }

  // recordEvent(device) -> event; elapsed(device, from, to) -> milliseconds
  Napi::Value recordEvent(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(deviceOf(info[0]).recordEvent()));
  }
  Napi::Value elapsed(const Napi::CallbackInfo& info) {
    const auto event = [&](size_t i) { return static_cast<size_t>(integerOf(info[i], "an event", 0, kLargest)); };
    return Napi::Number::New(info.Env(), deviceOf(info[0]).elapsed(event(1), event(2)));
  }

  Napi::Value describeComm(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), commLibrary()); }
  Napi::Value describeCommError(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), commError()); }
  Napi::Value openMpi(const Napi::CallbackInfo& info) { return collectives_.openMpi(info); }
#if defined(DENSECL_NCCL)
  Napi::Value loadNccl(const Napi::CallbackInfo& info) { return collectives_.loadNccl(info); }
  Napi::Value ncclId(const Napi::CallbackInfo& info) { return collectives_.ncclId(info); }
  Napi::Value describeBus(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), busId(deviceOf(info[0]))); }
  Napi::Value openNccl(const Napi::CallbackInfo& info) { return collectives_.openNccl(info, deviceOf(info[3])); }
#endif
  Napi::Value startCollective(const Napi::CallbackInfo& info) { return collectives_.start(info, handles_); }
  Napi::Value joinCollective(const Napi::CallbackInfo& info) { return collectives_.join(info); }
  Napi::Value closeCommunication(const Napi::CallbackInfo& info) {
    closeComm();
    return info.Env().Undefined();
  }
  // leave(code): ends the process at once, from any thread; no thread is waited for, nothing else is flushed
  Napi::Value leave(const Napi::CallbackInfo& info) { std::_Exit(static_cast<int>(integerOf(info[0], "an exit code", 0, 255))); }

#if defined(DENSECL_SIMT)
  Napi::Value simtShuffle(const Napi::CallbackInfo& info) {
    simt::setShuffle(static_cast<uint64_t>(info[0].ToNumber().Int64Value()));
    return info.Env().Undefined();
  }
  // simtCapability(value): of the GPU that kernels are chosen for, times 10
  Napi::Value simtCapability(const Napi::CallbackInfo& info) {
    simt::setCapability(info[0].ToNumber().Int32Value());
    return info.Env().Undefined();
  }
  // simtAlarm(name, out, in, at)
  Napi::Value simtAlarm(const Napi::CallbackInfo& info) {
    const auto tensor = [&](size_t i) -> const Tensor& { return handles_.get(info[i].ToNumber().DoubleValue(), "simtAlarm"); };
    simt::alarm(info[0].As<Napi::String>().Utf8Value(), tensor(1), tensor(2), info[3].ToNumber().Int32Value());
    return info.Env().Undefined();
  }
#endif

  Napi::FunctionReference errorClass_;
  Handles handles_;
  Device* device_ = nullptr;
  Reads reads_;
  Steps steps_;
  Collectives collectives_;
};

NODE_API_ADDON(Addon)

}  // namespace
}  // namespace densecl

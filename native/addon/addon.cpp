// The N-API surface: per-environment state, dispatch and error conversion; no maths. Exceptions are used (and enabled in
// node-addon-api) because no JavaScript is called from native code, so no foreign value can be thrown through it.
#include <napi.h>

#include <cstdlib>

#include "../core/device.h"
#include "../core/parallel.h"
#include "../core/signals.h"
#include "../core/system.h"
#include "../cpu/isa.h"
#include "calls.h"
#include "collectives.h"
#include "handles.h"
#include "images.h"
#include "steps.h"
#include "values.h"
#if defined(DENSECL_NVJPEG)
#include "../nvjpeg/nvjpeg.h"
#endif
#if defined(DENSECL_SIMT)
#include "../simt/alarms.h"
#endif

// The builds pass the version as it stands in package.json, without quotes.
#define DENSECL_TEXT(value) DENSECL_QUOTED(value)
#define DENSECL_QUOTED(value) #value

namespace densecl {
namespace {

constexpr double kMaxThreads = 1024;

class Addon : public Napi::Addon<Addon> {
 public:
  Addon(Napi::Env, Napi::Object exports) {
    giveLargeBlocksBack();
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
#if defined(DENSECL_NVJPEG)
                             InstanceMethod("loadNvjpeg", &Addon::guard<&Addon::loadNvjpeg>),
                             InstanceMethod("openNvjpeg", &Addon::guard<&Addon::openNvjpeg>),
                             InstanceMethod("startImages", &Addon::guard<&Addon::startImages>),
#endif
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

  Napi::Value run(const Napi::CallbackInfo& info) { return runOp(info, handles_, steps_); }
  Napi::Value formulas(const Napi::CallbackInfo& info) { return listFormulas(info.Env()); }
  Napi::Value opSignatures(const Napi::CallbackInfo& info) { return listSignatures(info.Env()); }

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
    result.Set("normsResults", traits.normsResults);
    result.Set("e4m3", traits.e4m3);
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
    void* const target = static_cast<char*>(tensor.raw()) + offset;
    if (bytes.second != 0) tensor.storage->device.startUpload(target, {{target, bytes.first, bytes.second}});
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

  Napi::Value decodeJpeg(const Napi::CallbackInfo& info) { return densecl::decodeJpeg(info); }
#if defined(DENSECL_NVJPEG)
  // loadNvjpeg(path) -> version; openNvjpeg(device) -> what it decodes with
  Napi::Value loadNvjpeg(const Napi::CallbackInfo& info) {
    return Napi::String::New(info.Env(), nvjpeg::load(info[0].As<Napi::String>().Utf8Value()));
  }
  Napi::Value openNvjpeg(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), nvjpeg::open(deviceOf(info[0]))); }
  Napi::Value startImages(const Napi::CallbackInfo& info) { return densecl::startImages(info, handles_); }
#endif
  Napi::Value renderView(const Napi::CallbackInfo& info) { return densecl::renderView(info); }

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

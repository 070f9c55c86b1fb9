#include "collectives.h"

#include "values.h"

namespace densecl {
namespace {

constexpr size_t kMaxPending = 4096;

// Whole numbers from an array that JavaScript made.
struct Numbers {
  const double* at;
  size_t left;
  const char* name;

  int64_t next(const char* what, double most) {
    REQUIRE(left > 0, "ARGUMENT", std::string(name) + ": expected " + what);
    --left;
    const double value = *at++;
    REQUIRE(value >= 0 && value <= most && value == static_cast<double>(static_cast<int64_t>(value)), "ARGUMENT",
            std::string(name) + ": expected " + what + " from 0 to " + std::to_string(static_cast<int64_t>(most)));
    return static_cast<int64_t>(value);
  }
  std::vector<Message> messages() {
    std::vector<Message> all(static_cast<size_t>(next("a number of messages", 1 << 24)));
    for (Message& message : all) {
      message.peer = static_cast<int>(next("the rank of a peer", 1 << 24));
      message.row = next("a row", kLargest);
      message.rows = next("a number of rows", kLargest);
    }
    return all;
  }
};

}  // namespace

Napi::Value Collectives::openMpi(const Napi::CallbackInfo& info) {
  const Comm& comm = densecl::openMpi();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("rank", comm.rank());
  result.Set("size", comm.size());
  return result;
}

#if defined(DENSECL_NCCL)
Napi::Value Collectives::loadNccl(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), densecl::loadNccl(info[0].As<Napi::String>().Utf8Value()));
}

Napi::Value Collectives::ncclId(const Napi::CallbackInfo& info) {
  const std::string id = densecl::ncclId();
  return Napi::Buffer<char>::Copy(info.Env(), id.data(), id.size());
}

Napi::Value Collectives::openNccl(const Napi::CallbackInfo& info, Device& device) {
  const auto [bytes, length] = bytesOf(info[0]);
  const int size = static_cast<int>(integerOf(info[2], "a number of processes", 1, 1 << 24));
  const int rank = static_cast<int>(integerOf(info[1], "a rank", 0, size - 1));
  densecl::openNccl(std::string(static_cast<const char*>(bytes), length), rank, size, device);
  return info.Env().Undefined();
}
#endif

Napi::Value Collectives::start(const Napi::CallbackInfo& info, const Handles& handles) {
  Collective call;
  call.kind = static_cast<CollectiveKind>(integerOf(info[0], "a collective", 0, kCollectiveKinds - 1));
  const char* name = collectiveName(call.kind);
  const auto given = numbersOf(info[1]), values = numbersOf(info[2]);
  for (size_t i = 0; i < given.second; ++i) call.tensors.push_back(handles.get(given.first[i], name));
  Numbers numbers{values.first, values.second, name};
  if (call.kind == CollectiveKind::allReduce) call.reduction = static_cast<Reduction>(numbers.next("a reduction", kReductions - 1));
  if (call.kind == CollectiveKind::broadcast) call.root = static_cast<int>(numbers.next("the rank of the root", 1 << 24));
  if (call.kind == CollectiveKind::exchange) {
    call.sends = numbers.messages();
    call.receives = numbers.messages();
  }
  REQUIRE(numbers.left == 0, "ARGUMENT", std::string(name) + ": received more numbers than it takes");
  REQUIRE(pending_.size() < kMaxPending, "COMM",
          std::string(name) + ": " + std::to_string(kMaxPending) + " collectives have been started and not joined: join them");
  for (const Tensor& tensor : call.tensors) tensor.storage->written();
  pending_[++last_] = openedComm().start(std::move(call));
  return Napi::Number::New(info.Env(), last_);
}

Napi::Value Collectives::join(const Napi::CallbackInfo& info) {
  const auto found = pending_.find(static_cast<uint32_t>(integerOf(info[0], "a started collective", 0, UINT32_MAX)));
  REQUIRE(found != pending_.end(), "ARGUMENT", "join: there is no such collective, or it has been joined");
  const std::unique_ptr<Pending> pending = std::move(found->second);
  pending_.erase(found);
  pending->join();
  return info.Env().Undefined();
}

}  // namespace densecl

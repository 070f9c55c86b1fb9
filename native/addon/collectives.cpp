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

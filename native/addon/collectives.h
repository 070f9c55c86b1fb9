// Collectives as JavaScript calls them, and those of one environment that have been started and not joined.
#pragma once
#include <napi.h>

#include <map>

#include "../core/comm.h"
#include "handles.h"

namespace densecl {

class Collectives {
 public:
  // () -> { rank, size }
  Napi::Value openMpi(const Napi::CallbackInfo& info);
#if defined(DENSECL_NCCL)
  // (path) -> version
  Napi::Value loadNccl(const Napi::CallbackInfo& info);
  // () -> the bytes of an id
  Napi::Value ncclId(const Napi::CallbackInfo& info);
  // (id, rank, size, device)
  Napi::Value openNccl(const Napi::CallbackInfo& info, Device& device);
#endif
  // (kind, handles: Float64Array, numbers: Float64Array) -> ticket. Numbers: of allReduce its reduction; of broadcast the root; of exchange
  // the number of messages that are sent and of each peer, row, rows, and the same of those that are received.
  Napi::Value start(const Napi::CallbackInfo& info, const Handles& handles);
  // (ticket): waits for the end of one
  Napi::Value join(const Napi::CallbackInfo& info);

 private:
  std::map<uint32_t, std::unique_ptr<Pending>> pending_;
  uint32_t last_ = 0;
};

}  // namespace densecl

// What data workers ask of native code: images that are no tensors yet.
#pragma once
#include <napi.h>

namespace densecl {

// decodeJpeg(bytes, [width, height] of the image, denominator, [x, y, width, height] of the reduced image, out)
Napi::Value decodeJpeg(const Napi::CallbackInfo& info);

// renderView(out, [height, width] of the view, pixels, row of the table of the op augment)
Napi::Value renderView(const Napi::CallbackInfo& info);

}  // namespace densecl

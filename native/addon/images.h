// Images that are no tensors yet: what data workers ask of native code, and how a batch of them comes to a GPU.
#pragma once
#include <napi.h>

#include "handles.h"

namespace densecl {

// decodeJpeg(bytes, [width, height] of the image, denominator, [x, y, width, height] of the reduced image, out)
Napi::Value decodeJpeg(const Napi::CallbackInfo& info);

// renderView(out, [height, width] of the view, pixels, row of the table of the op augment)
Napi::Value renderView(const Napi::CallbackInfo& info);

#if defined(DENSECL_NVJPEG)
// startImages(handle, bytes, offset, rows: Float64Array [images, 4]) -> what nvJPEG says where it refuses one of the files, else nothing.
// startUpload of images, of which each row has the place in `bytes`, and from `offset` on in the tensor; the bytes of a JPEG file that lies
// there, 0 for pixels; height and width.
Napi::Value startImages(const Napi::CallbackInfo& info, const Handles& handles);
#endif

}  // namespace densecl

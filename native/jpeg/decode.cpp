#include "decode.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../core/error.h"

extern "C" {
#include <jpeglib.h>
}
// Error codes of the library.
extern "C" {
#include <jerror.h>
}

namespace densecl::jpeg {
namespace {

// A progressive file may have any number of scans over the whole image, with a few bytes each.
constexpr int kMostScans = 500;

struct Manager {
  jpeg_error_mgr base;
  jpeg_progress_mgr progress;
  std::jmp_buf leave;
  char message[JMSG_LENGTH_MAX];
};

[[noreturn]] void leave(j_common_ptr info) {
  auto* manager = reinterpret_cast<Manager*>(info->err);
  manager->base.format_message(info, manager->message);
  std::longjmp(manager->leave, 1);
}

// What is damaged is an error, not half a picture; junk between segments loses nothing.
void heed(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code != JWRN_EXTRANEOUS_DATA) leave(info);
}

void countScans(j_common_ptr info) {
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= kMostScans) return;
  auto* manager = reinterpret_cast<Manager*>(info->err);
  std::snprintf(manager->message, sizeof manager->message, "more than %d scans", kMostScans);
  std::longjmp(manager->leave, 1);
}

struct Request {
  const uint8_t* bytes;
  size_t count;
  uint32_t width, height;
  int denominator;
  Region region;
  uint8_t* out;
  uint8_t* row;  // of the whole reduced image
};

// Everything between setjmp and longjmp: nothing here has a destructor. False with a message where it ended early.
bool decodeOrLeave(jpeg_decompress_struct& info, Manager& manager, const Request& request) {
  if (setjmp(manager.leave) != 0) return false;
  jpeg_create_decompress(&info);
  info.progress = &manager.progress;
  jpeg_mem_src(&info, request.bytes, static_cast<unsigned long>(request.count));
  jpeg_read_header(&info, TRUE);
  if (info.image_width != request.width || info.image_height != request.height) {
    std::snprintf(manager.message, sizeof manager.message, "its frame is %ux%u pixels", info.image_width, info.image_height);
    return false;
  }
  info.out_color_space = JCS_RGB;
  info.dct_method = JDCT_ISLOW;
  info.scale_num = 1;
  info.scale_denom = static_cast<unsigned>(request.denominator);
  jpeg_start_decompress(&info);
  const Region& region = request.region;
  JDIMENSION left = 0, wide = info.output_width;
  if (region.width < info.output_width) {
    // The upsampling of chroma looks at neighbours, which the library does not decode beyond the part.
    constexpr JDIMENSION margin = 8;
    left = region.x > margin ? region.x - margin : 0;
    wide = std::min(region.x + region.width + margin, info.output_width) - left;
    jpeg_crop_scanline(&info, &left, &wide);
  }
  if (region.y > 0) jpeg_skip_scanlines(&info, region.y);
  const size_t bytes = size_t{3} * region.width;
  for (uint32_t y = 0; y < region.height; ++y) {
    uint8_t* out = request.out + bytes * y;
    JSAMPROW row = wide == region.width ? out : request.row;
    jpeg_read_scanlines(&info, &row, 1);
    if (row != out) std::memcpy(out, row + size_t{3} * (region.x - left), bytes);
  }
  if (info.output_scanline == info.output_height) jpeg_finish_decompress(&info);
  return true;
}

}  // namespace

void decode(const uint8_t* bytes, size_t count, uint32_t width, uint32_t height, int denominator, const Region& region, uint8_t* out) {
  Manager manager{};
  jpeg_decompress_struct info{};
  info.err = jpeg_std_error(&manager.base);
  manager.base.error_exit = leave;
  manager.base.emit_message = heed;
  manager.progress.progress_monitor = countScans;
  std::vector<uint8_t> row(size_t{3} * width);
  const bool done = decodeOrLeave(info, manager, {bytes, count, width, height, denominator, region, out, row.data()});
  jpeg_destroy_decompress(&info);
  REQUIRE(done, "DECODE", manager.message);
}

}  // namespace densecl::jpeg

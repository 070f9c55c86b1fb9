// A stand-in for libnvjpeg.so whose "GPU" has the host's memory: enough of nvJPEG 12.4 to load, open and decode batches (native/nvjpeg), by
// the libjpeg-turbo of the addon with the settings of native/jpeg/decode.cpp. A batch must have the size that was announced, and be
// announced again after one that failed; a progressive file, or one that is damaged, is refused. The environment makes it misbehave:
//   NVJPEG_STANDIN_VERSION=11.5  the version that it says it is
//   NVJPEG_STANDIN_ENGINES=0     there are no JPEG engines
//   NVJPEG_STANDIN_CREATE=S      nvjpegCreateEx returns status S
//   NVJPEG_STANDIN_DECODE=S      every batch returns status S
//   NVJPEG_STANDIN_REFUSE=WIDTH  files of images of this width are not supported
//   NVJPEG_STANDIN_LOG=FILE      a line with backend and flags, then one for each batch: its files and the status
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#define PUBLIC __attribute__((visibility("default")))

enum { kSuccess = 0, kNotInitialized = 1, kInvalidParameter = 2, kBadJpeg = 3, kNotSupported = 4, kArchitecture = 7 };
enum { kMostFiles = 4096 };

typedef struct {
  unsigned char* channel[4];
  size_t pitch[4];
} Image;
typedef struct {
  int backend;
} Handle;
typedef struct {
  int batch;
} State;
typedef struct {
  struct jpeg_error_mgr base;
  jmp_buf leave;
} Manager;

static void leave(j_common_ptr info) { longjmp(((Manager*)info->err)->leave, 1); }
static void heed(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code != JWRN_EXTRANEOUS_DATA) leave(info);
}

static int decode(const unsigned char* bytes, size_t length, const Image* image) {
  struct jpeg_decompress_struct info;
  Manager manager;
  memset(&info, 0, sizeof info);
  info.err = jpeg_std_error(&manager.base);
  manager.base.error_exit = leave;
  manager.base.emit_message = heed;
  const char* refused = getenv("NVJPEG_STANDIN_REFUSE");
  volatile int result = kBadJpeg;  // read after a longjmp
  if (setjmp(manager.leave) == 0) {
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, bytes, (unsigned long)length);
    jpeg_read_header(&info, TRUE);
    if (info.progressive_mode || info.num_components == 4 || (refused != NULL && atoi(refused) == (int)info.image_width)) {
      result = kNotSupported;
    } else if (image->pitch[0] != 3 * (size_t)info.image_width) {
      result = kInvalidParameter;
    } else {
      info.out_color_space = JCS_RGB;
      info.dct_method = JDCT_ISLOW;
      jpeg_start_decompress(&info);
      while (info.output_scanline < info.output_height) {
        JSAMPROW row = image->channel[0] + info.output_scanline * image->pitch[0];
        jpeg_read_scanlines(&info, &row, 1);
      }
      jpeg_finish_decompress(&info);
      result = kSuccess;
    }
  }
  jpeg_destroy_decompress(&info);
  return result;
}

static void note(const char* what, int first, int second) {
  const char* path = getenv("NVJPEG_STANDIN_LOG");
  FILE* file = path == NULL ? NULL : fopen(path, "a");
  if (file == NULL) return;
  fprintf(file, "%s %d %d\n", what, first, second);
  fclose(file);
}

PUBLIC int nvjpegGetProperty(int which, int* value) {
  const char* text = getenv("NVJPEG_STANDIN_VERSION");
  int numbers[3] = {12, 4, 0};
  if (text != NULL) sscanf(text, "%d.%d", &numbers[0], &numbers[1]);
  *value = numbers[which];
  return kSuccess;
}

PUBLIC int nvjpegCreateEx(int backend, void* deviceAllocator, void* pinnedAllocator, unsigned flags, void** handle) {
  const char *engines = getenv("NVJPEG_STANDIN_ENGINES"), *status = getenv("NVJPEG_STANDIN_CREATE");
  if (deviceAllocator != NULL || pinnedAllocator != NULL) return kInvalidParameter;
  if (status != NULL) return atoi(status);
  if (backend == 3 && engines != NULL && atoi(engines) == 0) return kArchitecture;
  note("open", backend, (int)flags);
  *handle = calloc(1, sizeof(Handle));
  ((Handle*)*handle)->backend = backend;
  return kSuccess;
}

PUBLIC int nvjpegJpegStateCreate(void* handle, void** state) {
  if (handle == NULL) return kNotInitialized;
  *state = calloc(1, sizeof(State));
  return kSuccess;
}

PUBLIC int nvjpegDecodeBatchedInitialize(void* handle, void* state, int batch, int threads, int format) {
  if (handle == NULL || state == NULL) return kNotInitialized;
  if (batch < 1 || batch > kMostFiles || threads < 1 || format != 5) return kInvalidParameter;
  ((State*)state)->batch = batch;
  return kSuccess;
}

#if !defined(WITHOUT_BATCHES)
PUBLIC int nvjpegDecodeBatched(void* handle, void* at, const unsigned char* const* files, const size_t* lengths, Image* images, void* stream) {
  State* state = at;
  (void)stream;
  if (handle == NULL || state == NULL || state->batch == 0) return kNotInitialized;
  const char* told = getenv("NVJPEG_STANDIN_DECODE");
  int result = told == NULL ? kSuccess : atoi(told);
  // What comes before a bad file is there, and no more.
  for (int i = 0; i < state->batch && result == kSuccess; ++i) result = decode(files[i], lengths[i], &images[i]);
  note("decode", state->batch, result);
  if (result != kSuccess) state->batch = 0;
  return result;
}
#endif

/** nvJPEG, by which a GPU decodes JPEG files itself: found and loaded where a run asks for it (native/nvjpeg). */
import { fail } from '../tensor/errors.js'
import { type ForeignLibrary, loadLibrary } from '../tensor/library.js'
import { native } from '../tensor/native.js'

const nvjpeg: ForeignLibrary = {
  name: 'nvJPEG, by which a GPU decodes JPEGs,',
  variable: 'DENSECL_NVJPEG',
  files: ['libnvjpeg.so.13', 'libnvjpeg.so.12', 'libnvjpeg.so.11'],
  source: 'pip install nvidia-nvjpeg-cu12, or a CUDA toolkit,',
  code: 'TOOL',
}

/** Loads nvJPEG into this process: its version. Throws TOOL with all that was tried, and what to do. */
export function loadNvjpeg(): string {
  if (native.loadNvjpeg === undefined)
    fail('TOOL', 'this addon has no nvJPEG, by which a GPU decodes JPEGs: one that is built for CUDA has')
  return loadLibrary(nvjpeg, (path) => native.loadNvjpeg!(path))
}

/** What JPEGs are decoded with on a device, version and all; makes it ready. Throws TOOL where that cannot be. */
export function openNvjpeg(device: string): string {
  loadNvjpeg()
  return native.openNvjpeg!(device)
}

/** nvJPEG on `simt`: a stand-in (nvjpeg.c) that decodes with the libjpeg-turbo of the addon. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'

import { packageRoot } from '../../src/tensor/addon.js'
import { simtAddon, standIn } from './standIn.js'

const native = join(packageRoot, 'native')
const decoder = join(native, 'third_party', 'libjpeg-turbo')
/** Included by others. */
const parts = ['jdcolext.c', 'jdcol565.c', 'jstdhuff.c']
/** Loops of the decoder, and what they need. */
const vectors = ['jpeg/vectors.cpp', 'cpu/isa.cpp', 'core/system.cpp'].map((name) => join(native, name))

/** The path of the stand-in, compiled with these flags. */
export const nvjpegStandIn = (...flags: string[]): string =>
  standIn('nvjpeg', [
    ...flags,
    '-w',
    '-fvisibility=hidden',
    `-I${decoder}`,
    ...readdirSync(decoder)
      .filter((name) => name.endsWith('.c') && !parts.includes(name))
      .map((name) => join(decoder, name)),
    ...vectors,
    '-lstdc++',
  ])

/** The environment in which `simt` takes the stand-in. */
export const nvjpegEnvironment = (): NodeJS.ProcessEnv => ({ ...process.env, DENSECL_ADDON: simtAddon, DENSECL_NVJPEG: nvjpegStandIn() })

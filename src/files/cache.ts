/**
 * What is worth keeping between runs of a machine, one JSON file each in the user's cache folder. Nothing there is needed: a file
 * that cannot be read or written costs its making again, and the caller says why.
 */
import { createHash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { isAbsolute, join } from 'node:path'

import { makeFolder, writeTextAtomic } from './atomic.js'
import { kernelFamilies } from '../tensor/families.js'
import { packageVersion } from '../tensor/addon.js'
import { addonPath, native } from '../tensor/native.js'
import { deviceTraits } from '../tensor/traits.js'

/** `densecl` in XDG_CACHE_HOME or, where that is no absolute path, in ~/.cache, on Windows in LOCALAPPDATA. */
export function cacheFolder(): string {
  const places = [process.env.XDG_CACHE_HOME, process.platform === 'win32' ? process.env.LOCALAPPDATA : undefined]
  return join(places.find((place) => place !== undefined && isAbsolute(place)) ?? join(homedir(), '.cache'), 'densecl')
}

export const cacheFile = (name: string): string => join(cacheFolder(), name)

/** The value of a file of the cache, undefined without one; or why there is none. */
export function readCache(name: string): { value: unknown } | { problem: string } {
  const path = cacheFile(name)
  try {
    return { value: existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as unknown) : undefined }
  } catch (error) {
    if (error instanceof SyntaxError) return { problem: `${path}: is no JSON` }
    return { problem: `${path}: cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})` }
  }
}

/** Writes a file of the cache; undefined, or why that failed. */
export function writeCache(name: string, value: unknown): string | undefined {
  const path = cacheFile(name)
  try {
    makeFolder(cacheFolder())
    writeTextAtomic(path, `${JSON.stringify(value)}\n`)
    return undefined
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    return code === 'WRITE' ? message : `${path}: cannot be written (${code ?? String(error)})`
  }
}

/** What a measurement on a device holds for: the device, its driver, and this build of the kernels. */
export interface DeviceIdentity {
  /** Kind of device, multiprocessors, memory. */
  device: string
  driver: string
  /** Version, toolkit and architectures, a digest of the addon, and the families of kernels in use. */
  build: string
}

let digest: string | undefined

/** The hash of the addon's file. */
export function addonDigest(): string {
  return (digest ??= createHash('sha256').update(readFileSync(addonPath())).digest('hex').slice(0, 16))
}

/** Variables that choose other kernels than the device's own, as `NAME=value`, those of simt for simt alone. */
export function kernelSettings(device: string): string {
  const names = [
    'DENSECL_CAPABILITY',
    'DENSECL_MULTIPROCESSORS',
    ...(deviceTraits(device).simulated ? ['DENSECL_ARCHITECTURES', 'DENSECL_SIMT_FAULT'] : []),
  ]
  return names.flatMap((name) => (process.env[name] === undefined ? [] : [`${name}=${process.env[name]}`])).join(' ')
}

export function deviceIdentity(device: string): DeviceIdentity {
  const [settings, families] = [kernelSettings(device), kernelFamilies(device).join(' ')]
  const build = [packageVersion, native.cudaBuild(), addonDigest(), families].filter((part) => part !== '').join(', ')
  return {
    device: [native.describeDevice(device), ...(settings === '' ? [] : [settings])].join(', '),
    driver: driverVersion(device),
    build,
  }
}

/** The release of NVIDIA's kernel module where Linux tells it (the device itself tells the CUDA version alone). `none` without a GPU. */
export function driverVersion(device: string): string {
  if (deviceTraits(device).model === '') return 'none'
  try {
    return /\d+\.\d+(?:\.\d+)?/.exec(readFileSync('/proc/driver/nvidia/version', 'utf8'))?.[0] ?? 'unknown'
  } catch {
    return 'unknown'
  }
}

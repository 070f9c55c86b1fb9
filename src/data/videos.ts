/**
 * Videos as images: FFmpeg's program decodes them, in a process of its own, and writes frames as JPEG files, which whatever reads images
 * reads then.
 */
import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, realpathSync, renameSync, rmSync, statSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'

import { z } from 'zod'

import { makeFolder, removeLeftovers, writeProblem, writeTextAtomic } from '../files/atomic.js'
import { FileLock, untilSure } from '../files/lock.js'
import { DenseclError, fail, systemReason } from '../tensor/errors.js'
import { isInterruption, unlessInterrupted } from '../tensor/interruption.js'
import { isFolder, isVideo, namesIn, videoExtensions } from './source.js'

export interface Video {
  path: string
  /** Its folder below the one that was named, which may be a class: '' for a file that was named itself. */
  folder: string
}

/** Video files, and those at any depth below folders, in the order of the paths. Throws DATA for none, and for a path that is not there. */
export function videosAt(paths: readonly string[]): Video[] {
  for (const path of paths) if (!existsSync(path)) fail('DATA', `frames: ${path} does not exist: expected a video or a folder of videos`)
  const walk = (root: string, folder: string, above: readonly string[]): Video[] => {
    const real = realpathSync(join(root, folder))
    // A link to a folder that it lies in.
    if (above.includes(real)) return []
    return namesIn(join(root, folder)).flatMap((name) => {
      const path = join(root, folder, name)
      if (isFolder(path)) return walk(root, join(folder, name), [...above, real])
      return isVideo(name) ? [{ path, folder }] : []
    })
  }
  const videos = paths.flatMap((path) => (isFolder(path) ? walk(path, '', []) : [{ path, folder: '' }]))
  if (videos.length > 0) return videos
  return fail('DATA', `frames: ${paths.join(', ')} holds no videos: expected files ${[...videoExtensions].join(', ')}`)
}

export interface FrameOptions {
  /** Frames of a second of video that are kept. */
  framesPerSecond: number
  /** Frames of more pixels are reduced to about this many. */
  mostPixels: number
}

interface FrameReport {
  videos: number
  frames: number
  /** Videos without a frame that could be read, and why. */
  broken: { name: string; reason: string }[]
  /** Videos of which FFmpeg said that something in them is damaged, and what. */
  damaged: { name: string; reason: string }[]
  /** How many were complete already. */
  kept: number
}

/** What is said in frames.json of the videos that are complete: by their paths, of what file, and how many frames. */
const frameState = z.object({
  options: z.object({ framesPerSecond: z.number(), mostPixels: z.number() }),
  videos: z.record(z.string(), z.object({ bytes: z.number(), changed: z.number(), frames: z.int().min(1) })),
})
type FrameState = z.output<typeof frameState>

const statePath = (out: string): string => join(out, 'frames.json')

function begun(out: string, options: FrameOptions, resume: boolean): FrameState {
  const path = statePath(out)
  if (!existsSync(path)) return { options, videos: {} }
  if (!resume) fail('WRITE', `${out} holds frames already: expected another folder, or --resume to go on with them`)
  let state: FrameState
  try {
    state = frameState.parse(JSON.parse(readFileSync(path, 'utf8')))
  } catch {
    return fail('FORMAT', `${path}: is damaged; write frames into another folder`)
  }
  const same = state.options.framesPerSecond === options.framesPerSecond && state.options.mostPixels === options.mostPixels
  return same ? state : fail('CONFIG', `frames: ${path} is of other options; write frames into another folder`)
}

/**
 * Writes frames of each video into `out`, in its folder there, as VIDEO-000001.jpg and so on. One that cannot be read is left out and
 * named. With `resume` those that are complete and have not changed are kept; without it the folder must hold no frames. Throws TOOL where
 * FFmpeg is absent, and RUN while another process writes frames there.
 */
export async function extractFrames(
  videos: readonly Video[],
  out: string,
  { resume = false, ...options }: FrameOptions & { resume?: boolean },
  onVideo: (done: number) => void = () => undefined,
): Promise<FrameReport> {
  makeFolder(out)
  const lock = new FileLock(join(out, 'frames.lock'))
  await untilSure(lock.path)
  const holder = lock.take()
  if (holder !== undefined) fail('RUN', `${out}: process ${holder.pid} on ${holder.host} writes frames there since ${holder.since}`)
  const parts = join(out, '.frames')
  try {
    const state = begun(out, options, resume)
    removeLeftovers(out)
    const report: FrameReport = { videos: 0, frames: 0, broken: [], damaged: [], kept: 0 }
    for (const [done, { path, folder }] of videos.entries()) {
      const key = resolve(path)
      const { size: bytes, mtimeMs: changed } = statSync(path, { throwIfNoEntry: false }) ?? { size: -1, mtimeMs: 0 }
      const had = state.videos[key]
      const kept = had?.bytes === bytes && had.changed === changed
      try {
        const { frames, complaint } = kept ? { frames: had.frames } : await decodeInto(parts, path, options)
        if (!kept) {
          place(parts, join(out, folder), basename(path))
          state.videos[key] = { bytes, changed, frames }
          writeTextAtomic(statePath(out), `${JSON.stringify(state)}\n`)
        }
        report.videos += 1
        report.frames += frames
        report.kept += Number(kept)
        if (complaint !== undefined) report.damaged.push({ name: path, reason: `${path}: ${complaint}` })
      } catch (error) {
        if (!(error instanceof DenseclError) || error.code !== 'DECODE') throw error
        report.broken.push({ name: path, reason: error.message })
      }
      onVideo(done + 1)
    }
    return report
  } finally {
    rmSync(parts, { recursive: true, force: true })
    lock.release()
  }
}

/** Moves the frames of a folder to where they stay. */
function place(parts: string, folder: string, name: string): void {
  makeFolder(folder)
  // Frames of the file that this one was before.
  for (const each of readdirSync(folder))
    if (each.startsWith(`${name}-`) && /^\d{6,}\.jpg$/.test(each.slice(name.length + 1))) rmSync(join(folder, each))
  for (const part of readdirSync(parts)) renameSync(join(parts, part), join(folder, `${name}-${basename(part, '.part')}.jpg`))
}

/** The filters of FFmpeg: so many frames a second, square pixels, and no more of them than are wanted. */
function filters({ framesPerSecond, mostPixels }: FrameOptions): string {
  const reduce = `min(1,sqrt(${mostPixels}/(iw*sar*ih)))`
  return `fps=${framesPerSecond},scale=w='max(1,round(iw*sar*${reduce}))':h='max(1,round(ih*${reduce}))':flags=area,setsar=1`
}

/**
 * Decodes a video into a folder of its own: how many frames there are, and what FFmpeg complained of all the same. Throws DECODE with the
 * video's name where there are none.
 */
async function decodeInto(parts: string, path: string, options: FrameOptions): Promise<{ frames: number; complaint?: string }> {
  rmSync(parts, { recursive: true, force: true })
  makeFolder(parts)
  const args = [
    ...['-nostdin', '-hide_banner', '-loglevel', 'error'],
    // A playlist that is named as a video fetches nothing.
    ...['-protocol_whitelist', 'file', '-i', `file:${path}`, '-map', '0:v:0', '-vf', filters(options)],
    // Full chroma resolution: colours are augmented later. What a killed process leaves is named as no image.
    ...['-pix_fmt', 'yuvj444p', '-c:v', 'mjpeg', '-q:v', '2', '-f', 'image2', `file:${join(parts.replaceAll('%', '%%'), '%06d.part')}`],
  ]
  const { code, said } = await ffmpeg(args)
  const frames = readdirSync(parts).length
  const complaint = said
    .split('\n')
    // Without the address of what speaks.
    .map((line) => line.replace(/ @ 0x[0-9a-f]+/g, '').trim())
    .find((line) => line !== '')
  if (said.includes('No space left on device')) fail('WRITE', `${parts}: cannot be written (${writeProblem({ code: 'ENOSPC' })})`)
  if (code !== 0 || frames === 0) fail('DECODE', `${path}: FFmpeg finds no frames in it (${complaint ?? `exit code ${code}`})`)
  return { frames, ...(complaint === undefined ? {} : { complaint }) }
}

/** Runs FFmpeg, which is killed where the work is to end. */
async function ffmpeg(args: readonly string[]): Promise<{ code: number | null; said: string }> {
  const program = process.env.DENSECL_FFMPEG ?? 'ffmpeg'
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  // The first lines say what is wrong; a stream that is damaged everywhere says so a million times.
  child.stderr.setEncoding('utf8').on('data', (text: string) => (said = said.length < 2 ** 16 ? said + text : said))
  const ended = new Promise<number | null>((done, reject) => child.on('error', reject).on('close', done))
  try {
    return { code: await unlessInterrupted(ended), said }
  } catch (error) {
    child.kill('SIGKILL')
    if (isInterruption(error)) await ended.catch(() => undefined)
    if (error instanceof DenseclError) throw error
    return fail(
      'TOOL',
      `frames: ${program} cannot be started (${systemReason(error)}): expected FFmpeg, the package ffmpeg of Debian and Ubuntu; ` +
        'DENSECL_FFMPEG names another program',
    )
  }
}

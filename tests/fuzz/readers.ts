/**
 * The table of fuzzed readers: a name, and where its row is (reader.ts says what one is). A reader is loaded in the process that runs it.
 * A new one is a line here.
 */
import { faulty } from './readers/faulty.js'
import type { FuzzedReader } from './reader.js'

const [weights, data, images, run, cache, cli] = [
  () => import('./readers/weights.js'),
  () => import('./readers/data.js'),
  () => import('./readers/images.js'),
  () => import('./readers/run.js'),
  () => import('./readers/cache.js'),
  () => import('./readers/cli.js'),
] as const

export const readers: Readonly<Record<string, () => Promise<FuzzedReader>>> = {
  safetensors: async () => (await weights()).safetensors,
  import: async () => (await weights()).backbone,
  pth: async () => (await weights()).pth,
  legacyPth: async () => (await weights()).legacyPth,
  pickle: async () => (await weights()).pickle,
  checkpoint: async () => (await weights()).checkpoint,
  state: async () => (await weights()).state,
  classifier: async () => (await weights()).classifier,
  detector: async () => (await weights()).detector,
  tar: async () => (await data()).tar,
  coco: async () => (await data()).coco,
  list: async () => (await data()).list,
  voc: async () => (await data()).voc,
  vocXml: async () => (await data()).vocXml,
  cocoBoxes: async () => (await data()).cocoBoxes,
  mask: async () => (await images()).mask,
  image: async () => (await images()).image,
  npy: async () => (await images()).npy,
  config: async () => (await run()).config,
  run: async () => (await run()).run,
  tuning: async () => (await run()).tuning,
  times: async () => (await cache()).times,
  verdict: async () => (await cache()).verdict,
  tiles: async () => (await cache()).tiles,
  lock: async () => (await run()).lock,
  codeTable: async () => (await run()).codeTable,
  benchResult: async () => (await run()).benchResult,
  scores: async () => (await run()).scores,
  argv: async () => (await cli()).argv,
}

/** The row of a name; harness.test.ts has some of its own. */
export const readerOf = (name: string): Promise<FuzzedReader> => (readers[name] ?? faulty[name]!)()

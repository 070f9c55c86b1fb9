/** The built-in scenes (scenes.ts) as a source. */
import { fail } from '../tensor/errors.js'
import { sceneClasses } from './scenes.js'
import type { DataSource } from './source.js'

/** Images that `scenes` without a count stands for; validation images are a quarter of that, drawn from another seed. */
const defaultScenes = 4000

/** Every image is an entry of a list. */
const mostScenes = 10_000_000

export const sceneSource = {
  format: 'scenes',
  describe: 'scenes[:count]',
  virtual: true,
  recognises: (path) => /^scenes(:\d+)?$/.test(path),
  open(path, split) {
    const count = Number(path.split(':')[1] ?? (split === 'train' ? defaultScenes : defaultScenes / 4))
    if (count > mostScenes) fail('DATA', `data: ${path} are more images than the ${mostScenes} allowed`)
    const seed = split === 'train' ? 1 : 2
    return {
      classes: sceneClasses,
      items: Array.from({ length: count }, (_, index) => ({
        name: `scene ${index}`,
        kind: 'scene' as const,
        seed,
        index,
        label: index % sceneClasses.length,
      })),
    }
  },
} as const satisfies DataSource

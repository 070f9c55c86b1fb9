/** What a study compares: networks that differ in nothing but what the row of their arm sets. */
import { entryOf } from '../run/options.js'
import { fail } from '../tensor/errors.js'

/** What the settings of a study say of all arms, as far as an arm goes by it. */
export interface ArmBase {
  /** The learning rate of the arms with a dense loss. */
  lr: number
  /** Lambda, the weight of their dense loss. */
  denseWeight: number
  epochs: number
  /** Steps of MoCo v2 without dense head and loss in the time of one step of the last arm. */
  equalTime: number
}

export interface Arm {
  /** In tables and plots. */
  name: string
  describe: string
  /** What it is compared as: control, against which the dense ones are held, or neither. */
  role: 'untrained' | 'control' | 'dense'
  /** What it sets over everything else. */
  sets: (base: ArmBase) => Readonly<Record<string, unknown>>
}

/** The learning rate at which the global loss, whose weight is 1 - lambda with a dense loss, moves MoCo v2 as far. */
const scaled = ({ lr, denseWeight }: ArmBase): number => Number((lr * (1 - denseWeight)).toPrecision(12))

const geometry = { denseMatch: 'geometry', denseNegatives: 'local' }

export const arms = {
  random: { name: 'random weights', describe: 'not trained', role: 'untrained', sets: () => ({}) },
  mocov2: {
    name: 'MoCo v2',
    describe: 'dense weight 0, the learning rate of the dense arms',
    role: 'control',
    sets: () => ({ denseWeight: 0 }),
  },
  'mocov2-scaled': {
    name: 'MoCo v2, lr (1 - λ)',
    describe: 'the learning rate times 1 - lambda: what the global loss of the dense arms has',
    role: 'control',
    sets: (base) => ({ denseWeight: 0, lr: scaled(base) }),
  },
  'mocov2-time': {
    name: 'MoCo v2, equal time',
    describe: 'the same, with as many more epochs as its step is cheaper without dense head and loss',
    role: 'control',
    sets: (base) => ({ denseWeight: 0, lr: scaled(base), epochs: Math.ceil(base.epochs * base.equalTime) }),
  },
  densecl: {
    name: 'DenseCL',
    describe: 'the published form: partners by features, pooled negatives, the published temperature 0.2 for the dense loss',
    role: 'dense',
    sets: () => ({ denseMatch: 'feature', denseNegatives: 'pooled', denseInImage: 0, denseTemperature: 0.2 }),
  },
  geometry: {
    name: 'geometry',
    describe: 'a variant: partners by the known crops, 4 local negatives of an image',
    role: 'dense',
    sets: () => ({ ...geometry, denseInImage: 0 }),
  },
  'geometry-image': {
    name: 'geometry, in image',
    describe: 'the same, half of the dense loss against all positions of the same picture',
    role: 'dense',
    sets: () => ({ ...geometry, denseInImage: 0.5 }),
  },
} as const satisfies Record<string, Arm>

/** An arm by its name in flags and folders. */
export type ArmName = keyof typeof arms

export const armNames = Object.keys(arms) as readonly ArmName[]

export const armOf = (name: ArmName): Arm => arms[name]

/** The arms that a list names, in the order of the table. Throws CONFIG for one that there is not, and for none. */
export function chosenArms(list: readonly string[]): ArmName[] {
  for (const word of list) entryOf('--arms', word, arms)
  if (list.length === 0) fail('CONFIG', `--arms names none: expected some of ${armNames.join(', ')}`)
  return armNames.filter((name) => list.includes(name))
}

/** The backbone that a configuration asks for: a kind that the program has, or one of a module of the user's own. */
import { defaultExport, isModulePath } from '../files/module.js'
import { colourImages, greyImages, type ImageFormat } from '../data/augment.js'
import type { Backbone, BackboneBuilder, BackboneKind, BackboneLayout } from '../nn/backbone.js'
import { backboneKinds } from '../nn/backbones.js'
import { fail } from '../tensor/errors.js'
import { called } from '../tensor/settingNames.js'
import { didYouMean } from '../tensor/hint.js'
import type { Config } from './config.js'

/** The kind of a name, or of the module at a path, whose code is then run. Throws CONFIG, calling it as `option` says. */
export async function loadBackboneKind(wanted: string, option = called('backbone')): Promise<BackboneKind> {
  const known = backboneKinds.get(wanted)
  if (known !== undefined) return known
  if (!isModulePath(wanted))
    return fail(
      'CONFIG',
      `${option} is ${wanted}: expected ${[...backboneKinds.keys()].join(', ')} or the path of a module` +
        didYouMean(wanted, [...backboneKinds.keys()]),
    )
  const exported = await defaultExport(option, wanted)
  if (typeof exported === 'object' && exported !== null && 'charts' in exported)
    return fail(
      'CONFIG',
      `${option} is ${wanted}: expected a kind of backbone but its default export is a method, which is given as --method`,
    )
  const { name, build } = exported as Partial<BackboneKind>
  if (typeof name !== 'string' || typeof build !== 'function')
    return fail('CONFIG', `${option} is ${wanted}: expected its default export to have name and build, as a kind of backbone has`)
  if (backboneKinds.has(name)) return fail('CONFIG', `${option} is ${wanted}: its name ${name} is taken by a kind that densecl has`)
  return exported as BackboneKind
}

/** What commands that open weights take as --backbone. */
export const backboneHelp = 'the JavaScript module of the backbone, for weights of a kind that densecl does not have'

/** The kind that --backbone gives, if it is given. */
export const kindOfFlag = (wanted: string | undefined): Promise<BackboneKind | undefined> =>
  wanted === undefined ? Promise.resolve(undefined) : loadBackboneKind(wanted, '--backbone')

/** What the images of a backbone are. Throws CONFIG where neither it nor a convention says by what they are normalised. */
export function imagesOf({ inputs, normalisation, name }: Pick<Backbone, 'inputs' | 'normalisation' | 'name'>): ImageFormat {
  if (normalisation !== undefined) return { channels: inputs, ...normalisation }
  const usual = [colourImages, greyImages].find(({ channels }) => channels === inputs)
  return usual ?? fail('CONFIG', `${name}: takes images of ${inputs} channels, but neither it nor its file says their mean and deviation`)
}

/** Throws CONFIG for a backbone of images that `what` cannot read or draw: of other channels than `taken`, which are those of colours. */
export function checkChannels({ inputs, name }: Pick<Backbone, 'inputs' | 'name'>, what: string, taken: readonly number[] = [3]): void {
  if (!taken.includes(inputs))
    fail('CONFIG', `${what}: expected weights of images of ${taken.join(' or ')} channels but ${name} takes ${inputs}`)
}

/** Builds the configuration's backbone, which is one of `kind`. */
export function backboneOf(config: Config, kind: BackboneKind, layout: BackboneLayout = {}): BackboneBuilder {
  const own = Object.fromEntries((kind.settings ?? []).map((key) => [key, config[key as keyof Config]]))
  return (build) => kind.build(build, { ...own, ...config.backboneOptions }, { init: config.init, ...layout })
}

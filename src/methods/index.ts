/** The methods that are known by name, and the finding of others: a new one is a line in `methods`, or a module of the user's. */
import { defaultExport, isModulePath, modulePath } from '../files/module.js'
import { checkConfig, commonOptions, type Config } from '../run/config.js'
import { optionKey, type OptionTable, resolveOptions, section, type Setting, settingsOf } from '../run/options.js'
import { fail } from '../tensor/errors.js'
import { didYouMean } from '../tensor/hint.js'
import { densecl } from './densecl/method.js'
import type { DenseCLConfig } from './densecl/options.js'
import type { ConfigOf, Method, Preset } from './method.js'

const methods: Readonly<Record<string, Method>> = { densecl }

/** Every option of a method's runs: the common ones, then its own, in a section of its name. */
export const optionsOf = <O extends OptionTable>({ name, options }: Method<O>): typeof commonOptions & O => ({
  ...commonOptions,
  ...section(name, options),
})

/** The configuration that `settings` make, of which later ones win. Throws CONFIG for all that is wrong with them at once. */
export function resolveConfig(settings: readonly Setting[]): DenseCLConfig
export function resolveConfig<O extends OptionTable>(settings: readonly Setting[], method: Method<O>): ConfigOf<O>
export function resolveConfig(settings: readonly Setting[], method: Method = densecl): Config {
  const config = resolveOptions(optionsOf(method), settings)
  checkConfig(config)
  method.check?.(config)
  return config
}

/**
 * The method that `wanted` names: one of this package, or the default export of the JavaScript module at a path (relative to the
 * working directory) or file URL. `as` is what a configuration records, so that the method is found again from any directory.
 */
export async function findMethod(wanted: string): Promise<{ method: Method; as: string }> {
  const known = Object.hasOwn(methods, wanted) ? methods[wanted] : undefined
  if (known !== undefined) return { method: known, as: wanted }
  if (!isModulePath(wanted)) {
    const names = Object.keys(methods)
    return fail(
      'CONFIG',
      `method is ${wanted}: expected ${names.join(', ')}, or the path of a JavaScript module such as ` +
        `./${wanted}/method.js${didYouMean(wanted, names)}`,
    )
  }
  return { method: checkMethod(wanted, await defaultExport('method', wanted)), as: modulePath(wanted) }
}

/** What a module exports may be anything. */
function checkMethod(path: string, found: unknown): Method {
  const method = found as Partial<Method>
  const { name, describe, options, charts, build } = method
  if (typeof name !== 'string' || typeof describe !== 'string' || typeof options !== 'object' || !Array.isArray(charts) || !build)
    return fail(
      'CONFIG',
      `method is ${path}: expected its default export to have name, describe, options, charts and build, as a Method has`,
    )
  const taken = Object.keys(options).filter((key) => optionKey(commonOptions, key) !== undefined)
  if (taken.length > 0) fail('CONFIG', `method is ${path}: expected options of its own but ${taken.join(', ')} are common to all methods`)
  if (methods[name] !== undefined) fail('CONFIG', `method is ${path}: its name ${name} is taken by a method that densecl has`)
  return found as Method
}

/** The method that settings name, of which the last wins. */
export async function configuredMethod(settings: readonly Setting[]): Promise<{ method: Method; as: string }> {
  const wanted = settings.filter(({ key }) => key === 'method').at(-1)?.value ?? 'densecl'
  return typeof wanted === 'string' ? findMethod(wanted) : fail('CONFIG', `method is ${JSON.stringify(wanted)}: expected a name or a path`)
}

/** The method that settings name, and the configuration that they make of it, in which paths of modules are absolute. */
export async function configure(settings: readonly Setting[]): Promise<{ method: Method; config: Config }> {
  const { method, as } = await configuredMethod(settings)
  const config = resolveConfig(settings, method)
  return {
    method,
    config: {
      ...config,
      method: as,
      backbone: isModulePath(config.backbone) ? modulePath(config.backbone) : config.backbone,
      logTo: config.logTo !== null && isModulePath(config.logTo) ? modulePath(config.logTo) : config.logTo,
    },
  }
}

/** The named configurations of the methods that are known by name, and of `method`. */
export const presetsOf = (method?: Method): Record<string, Preset> =>
  Object.fromEntries(
    [...Object.values(methods), ...(method === undefined ? [] : [method])].flatMap(({ presets = {} }) => Object.entries(presets)),
  )

/** A named configuration, of `method` or of one that is known by name, as settings, the method's name among them. */
export function presetSettings(preset: string, method?: Method): Setting[] {
  const from = `preset ${preset}`
  const { presets: own = {} } = method ?? {}
  if (Object.hasOwn(own, preset)) return settingsOf(own[preset]!.config, from)
  for (const [name, { presets = {} }] of Object.entries(methods))
    if (Object.hasOwn(presets, preset)) return settingsOf({ method: name, ...presets[preset]!.config }, from)
  const names = Object.keys(presetsOf(method))
  return fail('CONFIG', `preset ${preset} does not exist${didYouMean(preset, names)}; presets: ${names.join(', ')}`)
}

/** Devices as the user of a command names them. */
import { fail } from '../tensor/errors.js'
import { native, resolveDevice } from '../tensor/native.js'
import { called } from '../tensor/settingNames.js'

/** resolveDevice, which throws CONFIG with the name of the setting for a word that means no device on any machine. */
export function namedDevice(wanted: string): string {
  if (!/^(auto|cpu|simt|cuda(:\d+)?)$/.test(wanted))
    fail(
      'CONFIG',
      `${called('device')} is ${wanted}: expected auto${native
        .deviceNames()
        .map((name) => `, ${name}`)
        .join('')}`,
    )
  return resolveDevice(wanted)
}

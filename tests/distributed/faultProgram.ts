/** Each rank of control.test.ts: `OUT throws|hangs RANK` trains into OUT until RANK does so before its fourth step. */
import { explain } from '../../src/cli/program.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { optionsOf, resolveConfig } from '../../src/methods/index.js'
import { densecl } from '../../src/methods/densecl/method.js'
import { keyValue } from '../../src/run/options.js'
import { fail } from '../../src/tensor/errors.js'
import { pretrain } from '../../src/train/pretrain.js'
import { tiny } from '../support/launch.js'

const [out, fault, who] = process.argv.slice(2)
const group = openGroup()
leaveTogether(group)

let asked = 0
function hurt(): boolean {
  if (group.rank !== Number(who) || asked++ < 3) return false
  if (fault === 'throws') fail('DATA', 'the images are gone')
  // As in a native call that does not come back: the event loop stands still too.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
  return false
}
try {
  const config = resolveConfig(tiny.map((text) => keyValue(optionsOf(densecl), text)))
  await pretrain({ config, out: out!, group, interrupted: hurt })
} catch (error) {
  const { code, text } = explain(error)
  console.error(`densecl: ${text}`)
  process.exitCode = code
}

/**
 * Each rank of nccl.test.ts. `load` says which NCCL it has, and how long two ids of it are; `call` makes a hundred collectives, of which
 * the rank that the second argument names makes another one than the rest.
 */
import { explain } from '../../src/cli/program.js'
import { loadNccl } from '../../src/distributed/nccl.js'
import { leaveTogether, openGroup } from '../../src/distributed/open.js'
import { native } from '../../src/tensor/native.js'
import { Tensor } from '../../src/tensor/tensor.js'

const [what, other] = process.argv.slice(2)
try {
  if (what === 'load') {
    const version = loadNccl()
    const ids = [0, 1].map(() => native.ncclId!())
    console.log(`${version} ${ids.map((id) => id.length).join(' ')}${ids[0]!.equals(ids[1]!) ? ' alike' : ''}`)
  } else {
    const group = openGroup(process.env.NCCL_STANDIN_DEVICE)
    leaveTogether(group)
    const x = Tensor.from([1], 'f32', group.device)
    for (let i = 0; i < 100; ++i)
      if (i === 50 && group.rank === Number(other)) group.allGather(x).dispose()
      else group.allReduce([x], 'max')
    x.dispose()
    console.log(`rank ${group.rank} of ${group.size} by ${native.commLibrary()} ok`)
  }
} catch (error) {
  const { code, text } = explain(error)
  console.error(`densecl: ${text}`)
  process.exitCode = code
}

/** Runs one alarm kernel (native/simt/alarms.cpp) and prints what it wrote: alarm.js NAME AT SHUFFLE-SEED. */
import { native } from '../../src/tensor/native.js'
import { Tensor, withDevice } from '../../src/tensor/tensor.js'

const [name, at, shuffle] = process.argv.slice(2)
withDevice('simt', () => {
  native.simtShuffle!(Number(shuffle))
  const out = Tensor.full([512], 0)
  const input = Tensor.from(
    Float32Array.from({ length: 512 }, (_, i) => i),
    [512],
  )
  native.simtAlarm!(name!, out.handle, input.handle, Number(at))
  // Any op looks at the guards of its tensors.
  const copy = out.to('f32')
  console.log(JSON.stringify([...copy.data()].map((value) => (Number.isNaN(value) ? -1 : value))))
})

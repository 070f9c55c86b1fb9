/** An op with a deliberately wrong gradient: tape.test.ts asserts that the check finds it. */
import { defineOp } from '../../src/autograd/op.js'
import { apply } from '../../src/autograd/tape.js'
import { Tensor } from '../../src/tensor/tensor.js'

const wrongSquareOp = defineOp<{ x: Tensor | undefined }>({
  name: 'wrongSquare',
  forward: ({ x }) => ({
    outputs: [
      Tensor.from(
        x!.data().map((v) => v * v),
        x!.shape,
        x!.dtype,
      ),
    ],
    saved: { x: x! },
  }),
  // d(x^2) = 2 x dx; the 2 is missing
  backward: ({ grad, saved }) => {
    const values = grad.data()
    return {
      x: Tensor.from(
        saved.x!.data().map((v, i) => v * values[i]!),
        grad.shape,
        grad.dtype,
      ),
    }
  },
})

export const wrongSquare = (x: Tensor): Tensor => apply(wrongSquareOp, { x }, {})[0]!

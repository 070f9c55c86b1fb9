/** A backbone without weights: its one map is the image in 8 x 8 cells of colours. */
import { Backbone, type BackboneKind, type MapShape } from '../../src/nn/backbone.js'
import { emptyState, type State } from '../../src/nn/module.js'
import { adaptiveAvgPool2d } from '../../src/ops/pool2d.js'
import { Random } from '../../src/tensor/random.js'
import type { Tensor } from '../../src/tensor/tensor.js'

/** For images of 8 times `cell` pixels a side. */
export class Colours extends Backbone {
  readonly kind: BackboneKind
  readonly options = {}
  readonly name = 'colours'
  readonly description = 'colours'
  readonly maps: readonly MapShape[]

  constructor(cell: number) {
    super({ random: new Random(0), dtype: 'f32' })
    this.kind = { name: 'colours', build: () => new Colours(cell) }
    this.maps = [{ channels: 3, stride: cell }]
  }

  stages(x: Tensor): Tensor[] {
    return [adaptiveAvgPool2d(x, 8)]
  }

  state(): State {
    return emptyState()
  }
}

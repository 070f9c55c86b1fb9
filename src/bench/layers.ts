/** The layers of ResNet-50 at 224 pixels, by the names of their parameters. */
export interface Layer {
  name: string
  /** Side of the input. */
  size: number
  c: number
  o: number
  kernel: number
  stride: number
}

/** The distinct convolutions; a stage's later blocks repeat its block 1. */
export const resnet50Layers: readonly Layer[] = (() => {
  const layers: Layer[] = [{ name: 'conv1', size: 224, c: 3, o: 64, kernel: 7, stride: 2 }]
  let inputs = 64
  for (const [s, size] of [56, 56, 28, 14].entries()) {
    const width = 64 * 2 ** s
    const stride = s === 0 ? 1 : 2
    const at = size / stride
    const add = (name: string, side: number, c: number, o: number, kernel: number, step = 1): unknown =>
      layers.push({ name: `layer${s + 1}.${name}`, size: side, c, o, kernel, stride: step })
    add('0.conv1', size, inputs, width, 1)
    add('0.conv2', size, width, width, 3, stride)
    add('0.conv3', at, width, 4 * width, 1)
    add('0.downsample.0', size, inputs, 4 * width, 1, stride)
    add('1.conv1', at, 4 * width, width, 1)
    if (s > 0) add('1.conv2', at, width, width, 3)
    inputs = 4 * width
  }
  return layers
})()

/** The distinct maps that batch norm sees: side and channels. */
export const resnet50Maps: readonly { name: string; size: number; c: number }[] = [
  { name: 'bn1', size: 112, c: 64 },
  ...[56, 28, 14, 7].flatMap((size, s) => [
    { name: `layer${s + 1}.1.bn1`, size, c: 64 * 2 ** s },
    { name: `layer${s + 1}.1.bn3`, size, c: 256 * 2 ** s },
  ]),
]

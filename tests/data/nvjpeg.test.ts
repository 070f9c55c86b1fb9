/** nvJPEG as it is found, loaded and used by commands: by a stand-in on `simt`. */
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import sharp from 'sharp'
import * as assert from 'uvu/assert'

import { loadNvjpeg } from '../../src/data/nvjpeg.js'
import { scene } from '../../src/data/scenes.js'
import { files } from '../../src/run/runFolder.js'
import { readMetrics } from '../../src/run/runLog.js'
import { native } from '../../src/tensor/native.js'
import { nvjpegEnvironment, nvjpegStandIn } from '../support/nvjpeg.js'
import { hasStandIns, noStandIns } from '../support/standIn.js'
import { runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('nvjpeg')

/** Photograph-like JPEGs in class folders, a progressive one and a PNG among them. */
async function photographs(folder: string, count: number): Promise<void> {
  for (let i = 0; i < count; ++i) {
    const { pixels, label } = scene(3, i)
    const image = sharp(pixels.data, { raw: { width: pixels.width, height: pixels.height, channels: 3 } })
    const at = join(folder, `class${label}`)
    mkdirSync(at, { recursive: true })
    if (i === 5) await image.png().toFile(join(at, `${i}.png`))
    else await image.jpeg({ progressive: i === 3, chromaSubsampling: i % 2 === 0 ? '4:2:0' : '4:4:4' }).toFile(join(at, `${i}.jpg`))
  }
}

const settings = [
  ...['device=simt', 'precision=f32', 'imageSize=32', 'batchSize=8', 'epochs=2', 'depth=18', 'baseChannels=4', 'mostPixels=40000'],
  ...['queueLength=16', 'hidden=8', 'featDim=8', 'workers=2', 'logEvery=1', 'knnImages=20', 'stopOnCollapse=false'],
]

/** Runs `densecl` on simt with the stand-in. */
const run = (args: string[], env: NodeJS.ProcessEnv = {}) => runCli(args, { env: { ...nvjpegEnvironment(), ...env } })
const doctor = (env: NodeJS.ProcessEnv): string => /^nvjpeg +(.*)$/m.exec(run(['doctor'], env).out)![1]!

test('an addon without GPUs says so', () => {
  if (native.loadNvjpeg === undefined) throwsError(() => loadNvjpeg(), 'TOOL', /this addon has no nvJPEG/)
})

testWhere(hasStandIns, noStandIns, test, 'a library that will not do is refused in a sentence, by doctor too', () => {
  for (const { env, said } of [
    { env: {}, said: /^nvJPEG 12\.4\.0, by JPEG engines$/ },
    { env: { NVJPEG_STANDIN_ENGINES: '0' }, said: /^nvJPEG 12\.4\.0, by kernels: this GPU has no JPEG engines$/ },
    { env: { NVJPEG_STANDIN_CREATE: '8' }, said: /^opening nvJPEG on simt: nvJPEG says internal error$/ },
    { env: { NVJPEG_STANDIN_VERSION: '11.5' }, said: /is nvJPEG 11\.5\.0: expected nvJPEG 11\.6 or later; DENSECL_NVJPEG names the file/ },
    { env: { DENSECL_NVJPEG: nvjpegStandIn('-DWITHOUT_BATCHES') }, said: /lacks nvjpegDecodeBatched: expected nvJPEG 11\.6 or later/ },
    { env: { DENSECL_NVJPEG: '/nonexistent/nvjpeg' }, said: /cannot be loaded: \/nonexistent\/nvjpeg: cannot open shared object file/ },
  ])
    assert.match(doctor(env), said)
})

testWhere(hasStandIns, noStandIns, test, 'without DENSECL_NVJPEG the loader is asked, then the python3 of the PATH', () =>
  withFolder((folder) => {
    const library = join(folder, 'nvidia', 'nvjpeg', 'lib', 'libnvjpeg.so.12')
    mkdirSync(join(library, '..'), { recursive: true })
    copyFileSync(nvjpegStandIn(), library)
    const found = /^nvJPEG 12\.4\.0/
    const path = { DENSECL_NVJPEG: undefined, PYTHONPATH: folder }
    if (spawnSync('python3', ['--version']).status === 0) assert.match(doctor(path), found)
    assert.match(doctor({ ...path, PYTHONPATH: '', LD_LIBRARY_PATH: join(library, '..') }), found)
    if (spawnSync('sh', ['-c', 'ldconfig -p | grep libnvjpeg.so']).status === 0) return
    writeFileSync(join(folder, 'python3'), '#!/bin/sh\nexit 1\n', { mode: 0o755 })
    const said = doctor({ DENSECL_NVJPEG: undefined, PATH: `${folder}:${process.env.PATH}` })
    assert.match(
      said,
      /libnvjpeg\.so\.13: cannot open .*libnvjpeg\.so\.11: cannot open .*; pip install nvidia-nvjpeg-cu12, or a CUDA toolkit/,
    )
  }),
)

testWhere(hasStandIns, noStandIns, test, 'a run of JPEGs that the GPU decodes has the losses of one whose workers do', () =>
  withFolder(async (folder) => {
    const data = join(folder, 'photographs')
    await photographs(data, 24)
    const losses = (decode: string): number[] => {
      const out = join(folder, decode)
      const log = join(folder, `${decode}.txt`)
      const args = ['pretrain', '--out', out, `data=${data}`, `knnData=${data}`, `decode=${decode}`, ...settings]
      const { code, out: said, err } = run(args, { NVJPEG_STANDIN_LOG: log })
      assert.is(code, 0, err)
      if (decode === 'gpu') {
        assert.match(said, /decode +nvJPEG 12\.4\.0, by JPEG engines; data workers decode what is no baseline JPEG/)
        const [open, ...batches] = readFileSync(log, 'utf8').trim().split('\n')
        // The hardware's decoder, chroma with interpolation; each epoch all images but two.
        assert.is(open, 'open 3 32')
        const decoded = batches.map((line) => Number(/^decode (\d+) 0$/.exec(line)![1]))
        assert.is(decoded.length, 6)
        assert.is(
          decoded.reduce((sum, count) => sum + count),
          2 * 22,
        )
      } else assert.not.ok(existsSync(log))
      return readMetrics(files(out).metrics).flatMap(({ loss = [] }) => loss)
    }
    // Nobody has timed what is faster.
    const [onGpu, onCpu] = [losses('gpu'), losses('auto')]
    assert.is(onGpu.length, 6)
    assert.equal(onGpu, onCpu)
  }),
)

testWhere(hasStandIns, noStandIns, test, 'where workers make the views no GPU decodes', () => {
  for (const [more, said] of [
    [['device=cpu'], /--decode is gpu: expected cpu, as the workers make the views of images of 3 channels on cpu/],
    [['device=simt', 'channels=1'], /--decode is gpu: expected cpu, as the workers make the views of images of 1 channels on simt/],
  ] as const) {
    const { code, err } = run(['pretrain', '--dry-run', 'data=scenes:16', ...settings, '--decode', 'gpu', ...more])
    assert.is(code, 2)
    assert.match(err, said)
  }
})

testWhere(hasStandIns, noStandIns, test, 'bench data says how many images the GPU decoded', () =>
  withFolder(async (folder) => {
    await photographs(folder, 16)
    const sizes = ['--device', 'simt', '--batch', '8', '--image-size', '224', '--workers', '1', '--seconds', '0.1']
    const { code, out, err } = run(['bench', 'data', '--data', folder, '--decode', 'gpu', ...sizes])
    assert.is(code, 0, err)
    assert.match(out, /^ +1 workers +\d+ images\/s +\d+ % decoded on the GPU +read [\d.]+ ms +place /m)
    const onCpu = run(['bench', 'data', '--data', folder, ...sizes])
    assert.match(onCpu.out, /images\/s +decode [\d.]+ ms/)
  }),
)

test.run()

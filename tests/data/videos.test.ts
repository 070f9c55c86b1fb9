/** Frames of videos: which they are, what they show, and what becomes of videos that cannot be read. */
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'

import * as assert from 'uvu/assert'

import { decode } from '../../src/data/decode.js'
import { openSource } from '../../src/data/sources.js'
import { extractFrames, videosAt } from '../../src/data/videos.js'
import { withInterruption } from '../../src/tensor/interruption.js'
import { rejectsError, runCli, suite, testWhere, throwsError, withFolder } from '../support/suite.js'

const test = suite('videos')

const program = process.env.DENSECL_FFMPEG ?? 'ffmpeg'
const [hasFfmpeg, noFfmpeg] = [spawnSync(program, ['-version']).status === 0, 'ffmpeg is not installed']

/** A grey video that grows lighter: at second T its grey value is 20 + 40 T. */
function writeFade(path: string, { seconds, size = '64x48', more = [] }: { seconds: number; size?: string; more?: string[] }): void {
  const source = `color=c=black:s=${size}:r=10:d=${seconds},geq=lum='16+(20+40*T)*219/255':cb=128:cr=128`
  const { status, stderr } = spawnSync(program, ['-v', 'error', '-f', 'lavfi', '-i', source, ...more, '-c:v', 'mpeg4', '-q:v', '2', path])
  assert.is(status, 0, stderr.toString())
}

const usual = { framesPerSecond: 1, mostPixels: 1e6 }
const framesIn = (folder: string): string[] =>
  readdirSync(folder)
    .filter((name) => name.endsWith('.jpg'))
    .sort()

async function meanOf(path: string): Promise<{ grey: number; width: number; height: number }> {
  const { width, height, data } = await decode(readFileSync(path), path)
  return { width, height, grey: data.reduce((sum, value) => sum + value, 0) / data.length }
}

testWhere(hasFfmpeg, noFfmpeg, test, 'frames are those of their times, in folders that are classes, and a source of images', async () => {
  await withFolder(async (folder) => {
    const [clips, out] = [join(folder, 'clips'), join(folder, '50% out')]
    for (const name of ['light', 'dark']) mkdirSync(join(clips, name, 'deep'), { recursive: true })
    writeFade(join(clips, 'light', 'a.mp4'), { seconds: 4 })
    writeFade(join(clips, 'dark', 'deep', '-b c.AVI'), { seconds: 2 })
    writeFileSync(join(clips, 'notes.txt'), 'no video')
    // A folder that holds itself.
    symlinkSync(clips, join(clips, 'dark', 'again'))
    for (const [framesPerSecond, counts] of [
      [1, [4, 2]],
      [2, [8, 4]],
      [0.5, [2, 1]],
    ] as const) {
      rmSync(out, { recursive: true, force: true })
      const report = await extractFrames(videosAt([clips]), out, { ...usual, framesPerSecond })
      assert.equal([report.videos, report.frames, report.broken, report.damaged], [2, counts[0] + counts[1], [], []])
      const light = framesIn(join(out, 'light'))
      assert.equal([light.length, framesIn(join(out, 'dark', 'deep')).length], counts)
      assert.equal(light[0], 'a.mp4-000001.jpg')
      for (const [i, name] of light.entries()) {
        const { grey, width, height } = await meanOf(join(out, 'light', name))
        assert.equal([width, height], [64, 48])
        // Within half of the time between two frames, and what two codecs round.
        assert.ok(Math.abs(grey - (20 + (40 * i) / framesPerSecond)) <= 20 / framesPerSecond + 4, `frame ${i}: ${grey}`)
      }
    }
    const source = await openSource(out, { format: 'folder' })
    assert.equal(
      [source.classes, source.items.map(({ label }) => label)],
      [
        ['dark', 'light'],
        [0, 1, 1],
      ],
    )
  })
})

testWhere(hasFfmpeg, noFfmpeg, test, 'frames are reduced to the pixels that are wanted, and pixels are square', async () => {
  await withFolder(async (folder) => {
    const path = join(folder, 'wide.mp4')
    // 128 x 120 of pixels that are twice as wide as high.
    writeFade(path, { seconds: 1, size: '128x120', more: ['-vf', 'setsar=2'] })
    for (const [mostPixels, width, height] of [
      [1e6, 256, 120],
      [7680, 128, 60],
      [1, 1, 1],
    ] as const) {
      const out = join(folder, String(mostPixels))
      await extractFrames(videosAt([path]), out, { ...usual, mostPixels })
      const { grey: _, ...size } = await meanOf(join(out, 'wide.mp4-000001.jpg'))
      assert.equal(size, { width, height })
    }
  })
})

testWhere(hasFfmpeg, noFfmpeg, test, 'broken videos are named and left out, and what is complete is kept', async () => {
  await withFolder(async (folder) => {
    const [clips, out] = [join(folder, 'clips'), join(folder, 'out')]
    mkdirSync(clips)
    writeFade(join(clips, 'a.mp4'), { seconds: 3 })
    writeFileSync(join(clips, 'b.mp4'), 'not a video')
    // A playlist that is named as a video, of what another machine has.
    let asked = 0
    const server = createServer((_, response) => void ((asked += 1), response.writeHead(404).end())).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const list = ['#EXTM3U', '#EXT-X-TARGETDURATION:1', '#EXTINF:1,', `http://127.0.0.1:${port}/x.ts`, '#EXT-X-ENDLIST', '']
    writeFileSync(join(clips, 'c.mkv'), list.join('\n'))
    const report = await extractFrames(videosAt([clips]), out, usual).finally(() => server.close())
    assert.is(asked, 0)
    assert.equal([report.videos, report.frames, report.kept], [1, 3, 0])
    assert.equal(
      report.broken.map(({ name }) => name),
      [join(clips, 'b.mp4'), join(clips, 'c.mkv')],
    )
    for (const { name, reason } of report.broken) assert.ok(reason.startsWith(`${name}: FFmpeg finds no frames in it`), reason)
    assert.not.ok(readdirSync(out).includes('.frames'))

    await rejectsError(() => extractFrames(videosAt([clips]), out, usual), 'WRITE', /holds frames already/)
    const other = { ...usual, framesPerSecond: 2, resume: true }
    await rejectsError(() => extractFrames(videosAt([clips]), out, other), 'CONFIG', /of other options/)
    const { ino } = statSync(join(out, 'a.mp4-000002.jpg'))
    writeFade(join(clips, 'd.mp4'), { seconds: 2 })
    const again = await extractFrames(videosAt([clips]), out, { ...usual, resume: true })
    assert.equal([again.videos, again.frames, again.kept], [2, 5, 1])
    assert.is(statSync(join(out, 'a.mp4-000002.jpg')).ino, ino)

    // Another file of the same name: its frames alone.
    rmSync(join(clips, 'a.mp4'))
    copyFileSync(join(clips, 'd.mp4'), join(clips, 'a.mp4'))
    utimesSync(join(clips, 'a.mp4'), 1, 1)
    const changed = await extractFrames(videosAt([join(clips, 'a.mp4')]), out, { ...usual, resume: true })
    assert.equal([changed.frames, changed.kept], [2, 0])
    assert.equal(framesIn(out), ['a.mp4-000001.jpg', 'a.mp4-000002.jpg', 'd.mp4-000001.jpg', 'd.mp4-000002.jpg'])
  })
})

testWhere(hasFfmpeg, noFfmpeg, test, 'one that is told to end leaves no part of a video, and goes on', async () => {
  await withFolder(async (folder) => {
    const out = join(folder, 'out')
    const paths = ['a', 'b', 'c'].map((name) => join(folder, `${name}.mp4`))
    for (const path of paths) writeFade(path, { seconds: 2 })
    let done = 0
    await rejectsError(
      () =>
        withInterruption(
          () => done > 0,
          () => extractFrames(videosAt(paths), out, usual, (count) => (done = count)),
        ),
      'INTERRUPTED',
    )
    assert.equal(framesIn(out), ['a.mp4-000001.jpg', 'a.mp4-000002.jpg'])
    assert.not.ok(readdirSync(out).includes('.frames'))
    const { kept, frames } = await extractFrames(videosAt(paths), out, { ...usual, resume: true })
    assert.equal([kept, frames], [1, 6])
  })
})

test('without videos or FFmpeg the message says what was expected', async () => {
  await withFolder(async (folder) => {
    throwsError(() => videosAt([folder]), 'DATA', folder, /holds no videos: expected files \.mp4, /)
    throwsError(() => videosAt([join(folder, 'none.mp4')]), 'DATA', /none\.mp4 does not exist/)
    const path = join(folder, 'a.mp4')
    writeFileSync(path, '')
    truncateSync(path, 10)
    const { code, err } = runCli(['frames', path, '--out', join(folder, 'out')], { env: { DENSECL_FFMPEG: '/nonexistent/ffmpeg' } })
    assert.is(code, 1)
    assert.match(err, /^densecl: frames: \/nonexistent\/ffmpeg cannot be started \(ENOENT\): expected FFmpeg/m)
    // Where somebody looks for images.
    const ofFolder = /holds no image .*; 1 skipped \(video, of which densecl frames makes images\): .*a\.mp4$/
    await rejectsError(() => openSource(folder, { format: 'folder' }), 'DATA', ofFolder)
    await rejectsError(() => openSource(path), 'DATA', `data: ${path} is a video: densecl frames makes images of it`)
  })
})

test.run()

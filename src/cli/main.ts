#!/usr/bin/env node
/** The `densecl` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 interrupted by SIGINT, and by SIGTERM or SIGHUP. */
import { loaded } from './loading.js'

const [major, minor] = process.versions.node.split('.').map(Number) as [number, number]
if (major < 20 || (major === 20 && minor < 17)) {
  console.error(`densecl: Node ${process.versions.node} is too old: 20.17 or later is needed (https://nodejs.org)`)
  process.exit(2)
}

// A reader that went away (| head), or a terminal that was closed, ends the output, not the program with a stack trace.
for (const output of [process.stdout, process.stderr])
  output.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE' && error.code !== 'EIO') throw error
  })

async function main(): Promise<number> {
  let program: typeof import('./program.js')
  try {
    // Imported here: a missing addon is then an error with a remedy, not a stack trace.
    program = await loaded(() => import('./program.js'))
  } catch (error) {
    if (!(error instanceof Error)) throw error
    console.error(`densecl: ${error.message}`)
    return 1
  }
  try {
    return await program.runProgram(process.argv.slice(2))
  } catch (error) {
    const { code, text, mistake } = program.explain(error)
    if (text !== undefined) console.error(`densecl: ${text}`)
    if (mistake === true) console.error(error)
    return code
  }
}

process.exitCode = await main()

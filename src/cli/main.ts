#!/usr/bin/env node
/** The `densecl` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 interrupted by SIGINT and SIGTERM. */
import { Command, CommanderError } from 'commander'

const [major, minor] = process.versions.node.split('.').map(Number) as [number, number]
if (major < 20 || (major === 20 && minor < 17)) {
  console.error(`densecl: Node ${process.versions.node} is too old: 20.17 or later is needed (https://nodejs.org)`)
  process.exit(2)
}

// A reader that went away (| head) ends the output, not the program with a stack trace.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
})

async function main(): Promise<number> {
  // Imported here: a missing addon is then an error with a remedy, not a stack trace.
  const { packageVersion } = await import('../tensor/native.js')
  const commands = await Promise.all([
    import('./pretrain.js'),
    import('./eval.js'),
    import('./export.js'),
    import('./import.js'),
    import('./study.js'),
    import('./match.js'),
    import('./report.js'),
    import('./watch.js'),
    import('./checkData.js'),
    import('./pack.js'),
    import('./bench.js'),
    import('./doctor.js'),
  ])
  const program = new Command('densecl')
    .description('self-supervised pre-training of image backbones: dense contrastive learning (DenseCL, CVPR 2021)')
    .version(packageVersion)
    .exitOverride()
    .showHelpAfterError('(add --help for usage)')
  let code = 0
  for (const { register } of commands) await register(program, (result) => (code = result))
  await program.parseAsync()
  return code
}

try {
  process.exitCode = await main()
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2
  else if (error instanceof Error && error.name === 'DenseclError') {
    console.error(`densecl: ${error.message}`)
    process.exitCode = (error as Error & { code: string }).code === 'CONFIG' ? 2 : 1
  } else if (error instanceof Error && 'syscall' in error) {
    // The system refuses something, and says what and where.
    console.error(`densecl: ${error.message}`)
    process.exitCode = 1
  } else {
    console.error('densecl: this is a mistake in densecl; please report it:')
    console.error(error)
    process.exitCode = 1
  }
}

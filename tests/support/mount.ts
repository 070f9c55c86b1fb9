/** Small disks of one's own: a tmpfs in a mount namespace, which ends with the process that made it. */
import { spawnSync } from 'node:child_process'

export const canMount = process.platform === 'linux' && process.getuid?.() === 0 && spawnSync('unshare', ['-m', 'true']).status === 0

/** Starts to count the seconds of processor time that this process takes; the function gives them. Other work on the machine is no part. */
export function processorTime(): () => number {
  const start = process.cpuUsage()
  return () => {
    const { user, system } = process.cpuUsage(start)
    return (user + system) / 1e6
  }
}

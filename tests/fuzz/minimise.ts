/** The smallest input found in `seconds` that still fails in the same way: parts are left out, large ones first. */
export async function minimise(bytes: Uint8Array, fails: (bytes: Uint8Array) => Promise<boolean>, seconds: number): Promise<Uint8Array> {
  const end = performance.now() + 1000 * seconds
  let small = bytes
  for (let size = Math.ceil(bytes.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < small.length;) {
      if (performance.now() > end) return small
      const shorter = Buffer.concat([small.subarray(0, at), small.subarray(at + size)])
      if (await fails(shorter)) small = shorter
      else at += size
    }
  }
  return small
}

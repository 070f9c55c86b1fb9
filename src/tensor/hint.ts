/** What a message offers for a word that is not known, and how it counts. */

const simple = (word: string): string => word.toLowerCase().replace(/[-_ ]/g, '')

/** Letters to insert, to remove or to exchange that make one word of another. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; ++i) {
    const next = [i]
    for (let j = 1; j <= b.length; ++j) next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + Number(a[i - 1] !== b[j - 1])))
    row = next
  }
  return row[b.length]!
}

/** How far a word is from a candidate, as a share of the longer one; 0 where it is the beginning of it or their beginnings are long. */
function distance(word: string, candidate: string): number {
  const [a, b] = [simple(word), simple(candidate)]
  const longer = Math.max(a.length, b.length)
  if (a === '') return 1
  if (b.startsWith(a)) return 0
  let shared = 0
  while (shared < a.length && a[shared] === b[shared]) shared += 1
  return shared >= longer / 2 ? 0 : editDistance(a, b) / longer
}

/** Words further from each other than this are no slips of each other. */
const farthest = 0.4

/**
 * The candidate that somebody who wrote `word` can have meant: one that begins with it, or else of the smallest edit distance. Case and
 * hyphens do not count, and of a dotted key the last part does. Undefined where none is near.
 */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  const last = word.split('.').at(-1)!
  const near = candidates.map((candidate) => ({ candidate, far: distance(last, candidate) })).filter(({ far }) => far <= farthest)
  const begun = near.find(({ candidate }) => simple(candidate).startsWith(simple(last)))
  return (begun ?? near.sort((a, b) => a.far - b.far)[0])?.candidate
}

/** ` (did you mean NAME?)` for a word that is near to a name, else nothing. */
export function didYouMean(word: string, candidates: readonly string[], shown = (name: string): string => name): string {
  const name = nearest(word, candidates)
  return name === undefined ? '' : ` (did you mean ${shown(name)}?)`
}

/** `1 class`, `2 classes`. */
export const classCount = (count: number): string => (count === 1 ? '1 class' : `${count} classes`)

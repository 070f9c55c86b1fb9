/** What zod finds wrong with a value, in the words of this package. */
import type { z } from 'zod'

/** What is expected where a value is of another kind; kinds that are not here go by their own names. */
const kinds: Readonly<Record<string, string>> = {
  number: 'a number',
  int: 'an integer',
  string: 'text',
  boolean: 'true or false',
  array: 'a list',
  tuple: 'a list',
  object: 'a map',
  record: 'a map',
  map: 'a map',
  null: 'null',
  undefined: 'nothing',
}

/** What sizes of a value are counted in. */
const units: Readonly<Record<string, string>> = { string: 'letters', array: 'entries', set: 'entries', map: 'entries', file: 'bytes' }

/** Choices between others, of which one is expected. */
export const oneOf = (choices: readonly unknown[]): string =>
  choices.length === 1 ? String(choices[0]) : `one of ${choices.map(String).join(', ')}`

function bounded(bound: string, { origin, exact, inclusive }: { origin: string; exact?: boolean; inclusive?: boolean }, limit: unknown) {
  const how = exact === true ? '' : inclusive === false ? `${bound === 'at least' ? 'more' : 'less'} than ` : `${bound} `
  return `${how}${String(limit)}${units[origin] === undefined ? '' : ` ${units[origin]}`}`
}

type Issue = z.core.$ZodIssue

/** What an issue says was expected, to stand behind that word. */
export function expectedOf(issue: Issue): string {
  switch (issue.code) {
    case 'invalid_type':
      return kinds[issue.expected] ?? `a value of the kind ${issue.expected}`
    case 'invalid_value':
      return oneOf(issue.values)
    case 'too_small':
      return bounded('at least', issue, issue.minimum)
    case 'too_big':
      return bounded('at most', issue, issue.maximum)
    case 'not_multiple_of':
      return `a multiple of ${issue.divisor}`
    case 'invalid_format':
      return `text of the form ${issue.pattern ?? issue.format}`
    case 'unrecognized_keys':
      return `nothing called ${issue.keys.join(', ')}`
    case 'invalid_union':
      return (
        [...new Set(issue.errors.flatMap(([first]) => (first === undefined ? [] : [expectedOf(first)])))].join(', or ') || 'another value'
      )
    case 'invalid_key':
    case 'invalid_element':
      return issue.issues[0] === undefined ? 'another value' : expectedOf(issue.issues[0])
    default:
      return 'another value'
  }
}

/** The first thing that is wrong with a value, called `name` where that is no empty text, and its place in it. */
export function firstIssue({ issues }: z.ZodError, name = ''): string {
  const [issue] = issues as [Issue, ...Issue[]]
  const place = [...(name === '' ? [] : [name]), ...issue.path.map(String)].join('.')
  // A check that has words of its own is quoted.
  const what = issue.code === 'custom' ? issue.message : `expected ${expectedOf(issue)}`
  return place === '' ? what : `${place}: ${what}`
}

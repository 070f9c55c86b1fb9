/** What an option takes, in words. */
import { z } from 'zod'

import { oneOf } from '../tensor/issues.js'

/** The part of JSON Schema that options are described in. */
interface JsonSchema {
  type?: string
  anyOf?: JsonSchema[]
  enum?: unknown[]
  const?: unknown
  minimum?: number
  maximum?: number
  exclusiveMinimum?: number
  exclusiveMaximum?: number
  multipleOf?: number
  minLength?: number
  maxLength?: number
  pattern?: string
  items?: JsonSchema
  prefixItems?: JsonSchema[]
  minItems?: number
  maxItems?: number
}

/** What a row takes, to stand behind `expected`; undefined for one whose kind has no words here. */
export function taken(row: z.ZodType): string | undefined {
  try {
    return words(z.toJSONSchema(row, { unrepresentable: 'any', io: 'input' }) as JsonSchema)
  } catch {
    return undefined // of a kind of its own
  }
}

function words(schema: JsonSchema): string | undefined {
  const { type, anyOf, enum: choices, const: only } = schema
  if (anyOf !== undefined) {
    const each = anyOf.map(words)
    return each.includes(undefined) ? undefined : each.join(', or ')
  }
  if (choices !== undefined) return oneOf(choices)
  if (only !== undefined) return oneOf([only])
  if (type === 'integer' || type === 'number') return `${type === 'integer' ? 'an integer' : 'a number'}${range(schema)}`
  if (type === 'boolean') return 'true or false'
  if (type === 'null') return 'null'
  if (type === 'object') return 'a map'
  if (type === 'array') return list(schema)
  return type === 'string' ? text(schema) : undefined
}

/** What a bound of a schema is; undefined for those of all integers. */
const bound = (value: number | undefined): number | undefined =>
  value === undefined || Math.abs(value) >= Number.MAX_SAFE_INTEGER ? undefined : value

function range({ minimum, maximum, exclusiveMinimum: above, exclusiveMaximum: below, multipleOf }: JsonSchema): string {
  const [least, most] = [bound(minimum), bound(maximum)]
  const bounds =
    least !== undefined && most !== undefined
      ? [`in ${least}..${most}`]
      : [
          ...(least === undefined ? [] : [`of at least ${least}`]),
          ...(above === undefined ? [] : [`above ${above}`]),
          ...(most === undefined ? [] : [`of at most ${most}`]),
          ...(below === undefined ? [] : [`below ${below}`]),
        ]
  return `${bounds.length === 0 ? '' : ` ${bounds.join(' and ')}`}${multipleOf === undefined ? '' : `, a multiple of ${multipleOf}`}`
}

function text({ minLength, maxLength, pattern }: JsonSchema): string {
  const sizes = [
    ...(minLength === undefined ? [] : [`at least ${minLength}`]),
    ...(maxLength === undefined ? [] : [`at most ${maxLength}`]),
  ]
  return `text${sizes.length === 0 ? '' : ` of ${sizes.join(' and ')} letters`}${pattern === undefined ? '' : ` of the form ${pattern}`}`
}

function list({ items = {}, prefixItems, minItems, maxItems }: JsonSchema): string {
  const [count, each] = [minItems === maxItems ? minItems : undefined, words(prefixItems?.[0] ?? items)]
  return `a list${count === undefined ? '' : ` of ${count} entries`}${each === undefined ? '' : `, each ${each}`}`
}

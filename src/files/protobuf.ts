/**
 * Protocol buffers as bytes: of each field a tag, (number << 3 | wire type), then the value. Format:
 * protobuf.dev/programming-guides/encoding (facts only).
 */

/** A non-negative integer, seven bits a byte. */
export function varint(value: number): Buffer {
  const bytes: number[] = []
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    bytes.push(rest >= 128 ? (rest % 128) | 128 : rest)
    if (rest < 128) return Buffer.from(bytes)
  }
}

/** A message, a string or raw bytes. */
export function bytesField(field: number, value: Uint8Array | string): Buffer {
  const bytes = typeof value === 'string' ? Buffer.from(value) : value
  return Buffer.concat([varint(field * 8 + 2), varint(bytes.length), bytes])
}

export function doubleField(field: number, value: number): Buffer {
  const out = Buffer.alloc(8)
  out.writeDoubleLE(value)
  return Buffer.concat([varint(field * 8 + 1), out])
}

export function floatField(field: number, value: number): Buffer {
  const out = Buffer.alloc(4)
  out.writeFloatLE(value)
  return Buffer.concat([varint(field * 8 + 5), out])
}

/** An integer, as int64 has it: negative ones take ten bytes. */
export function intField(field: number, value: number): Buffer {
  if (value >= 0) return Buffer.concat([varint(field * 8), varint(value)])
  const bytes: number[] = []
  let rest = BigInt.asUintN(64, BigInt(value))
  for (; rest >= 128n; rest >>= 7n) bytes.push(Number(rest & 127n) | 128)
  return Buffer.concat([varint(field * 8), Buffer.from([...bytes, Number(rest)])])
}

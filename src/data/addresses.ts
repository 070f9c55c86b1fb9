/** Addresses of data on other machines: patterns that stand for many, and what of them may be written down. */
import { fail } from '../tensor/errors.js'

export const isAddress = (text: string): boolean => /^https?:\/\//i.test(text)

/** An address to the end of a word: `--data=https://...` and `data=https://...` hold one. */
const inText = /https?:\/\/[^\s"'<>]+/gi

/** `{000000..000146}`: numbers of a pattern, with leading zeros where the first has them. */
const range = /\{(\d+)\.\.(\d+)\}/

const mark = '***'

/** What was shown of an address, and the address, in the memory of this process alone. */
const hidden = new Map<string, string>()

/** An address without user, password, query and fragment, which may be secrets: `***` stands for them. */
export function shownAddress(address: string): string {
  let url: URL
  try {
    url = new URL(address.replace(new RegExp(range, 'g'), '$1'))
  } catch {
    // What it means is not known: nothing of it is shown.
    return `${/^https?:\/\//i.exec(address)?.[0] ?? ''}${mark}`
  }
  const [scheme, rest] = [address.slice(0, address.indexOf('//') + 2), address.slice(address.indexOf('//') + 2)]
  const authority = /^[^/?#]*/.exec(rest)![0]
  const path = /^[^?#]*/.exec(rest.slice(authority.length))![0]
  const user = url.username === '' && url.password === '' ? '' : `${mark}@`
  const query = url.search === '' && url.hash === '' ? '' : `?${mark}`
  return `${scheme}${user}${authority.slice(authority.lastIndexOf('@') + 1)}${path}${query}`
}

/** `text` with every address in it as shownAddress() has it; withSecrets() finds the address again, in this process. */
export const withoutSecrets = (text: string): string =>
  text.replace(inText, (address) => {
    const shown = shownAddress(address)
    if (shown === address || address.includes(mark)) return address
    // Two that differ in what is not shown stay two.
    let name = shown
    for (let i = 2; hidden.has(name) && hidden.get(name) !== address; ++i) name = `${shown}${i}`
    hidden.set(name, address)
    return name
  })

/** What withoutSecrets() made of a text, as it was. Throws CONFIG for what another process has shown. */
export const withSecrets = (text: string): string =>
  text.replace(inText, (shown) => {
    if (!shown.includes(mark)) return shown
    const remedy =
      'addresses are recorded without user, password and query: give the address again (--data), or a list of addresses in a file'
    return hidden.get(shown) ?? fail('CONFIG', `data: ${shown} cannot be read: ${remedy}`)
  })

/** A part of an address without its percent codes; as it is where they are none that anybody could read. */
export function decoded(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

/** More shards than any data set has. */
const mostAddresses = 1_000_000

/** The addresses that a pattern stands for, in the order of its numbers. Throws DATA for one that stands for none, or for too many. */
export function addressesOf(pattern: string): string[] {
  const found = range.exec(pattern)
  if (found === null) return [checkedAddress(pattern)]
  const [whole, first, last] = found as unknown as [string, string, string]
  const count = Number(last) - Number(first) + 1
  if (count < 1) fail('DATA', `data: ${shownAddress(pattern)} has the numbers ${whole}: expected the smaller one first`)
  if (count > mostAddresses) fail('DATA', `data: ${shownAddress(pattern)} stands for ${count} files: expected at most ${mostAddresses}`)
  const all: string[] = []
  for (let i = 0; i < count; ++i) {
    const number = String(Number(first) + i).padStart(first.length, '0')
    for (const address of addressesOf(`${pattern.slice(0, found.index)}${number}${pattern.slice(found.index + whole.length)}`))
      all.push(address)
    if (all.length > mostAddresses) fail('DATA', `data: ${shownAddress(pattern)} stands for more than ${mostAddresses} files`)
  }
  return all
}

function checkedAddress(address: string): string {
  if (!URL.canParse(address))
    fail('DATA', `data: ${shownAddress(address)} is no address: expected one such as https://host/shard-{000000..000146}.tar`)
  return address
}

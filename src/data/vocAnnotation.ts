/** The annotation of an image in PASCAL VOC's form: an XML file with its size and, for each object, class, flags and corners. */
import { parseXml, XmlElement, XmlText } from '@rgrove/parse-xml'

import { fail } from '../tensor/errors.js'
import type { Box } from './boxes.js'

/** An object as a VOC annotation names it. */
export interface VocObject {
  name: string
  /** In continuous pixels: VOC counts from 1 and its far corner is inclusive, so that 1 is taken from the near corner only. */
  box: Box
  difficult: boolean
  truncated: boolean
}

/** What a VOC annotation holds; width and height are absent where the file gives none, or 0. */
export interface VocAnnotation {
  width?: number
  height?: number
  objects: VocObject[]
}

/** Those of VOC have some kilobytes; this leaves room for some 10,000 objects. */
const mostCharacters = 4 << 20

/**
 * Reads an annotation; entities are not expanded and nothing outside of the text is looked at. Parts of objects (a person's head) are
 * none themselves. Throws DATA with `path` for text that is no XML, or whose objects lack a name or a corner.
 */
export function parseVocAnnotation(text: string, path: string): VocAnnotation {
  if (text.length > mostCharacters)
    fail('DATA', `data: ${path} has ${text.length} characters: expected an annotation of at most ${mostCharacters}`)
  const root = rootOf(text, path)
  if (root.name !== 'annotation') fail('DATA', `data: ${path}: the root element is <${root.name}>: expected <annotation>`)
  const size = child(root, 'size')
  const side = (name: string): number | undefined => {
    const written = size === undefined ? undefined : child(size, name)
    return written === undefined ? undefined : Math.trunc(number(written, path, 'size')) || undefined
  }
  const [width, height] = [side('width'), side('height')]
  return {
    ...(width === undefined ? {} : { width }),
    ...(height === undefined ? {} : { height }),
    objects: children(root, 'object').map((element, i) => objectOf(element, path, `object ${i + 1}`)),
  }
}

function rootOf(text: string, path: string): XmlElement {
  try {
    return parseXml(text).root ?? fail('DATA', `data: ${path} is an XML file without an element`)
  } catch (error) {
    if (error instanceof RangeError) return fail('DATA', `data: ${path}: the elements are nested too deeply`)
    const [reason] = (error instanceof Error ? error.message : String(error)).split('\n')
    return fail('DATA', `data: ${path} is not XML (${reason!.trim()})`)
  }
}

function objectOf(element: XmlElement, path: string, what: string): VocObject {
  const name = textOf(child(element, 'name')).trim()
  if (name === '') fail('DATA', `data: ${path}: ${what} has no <name>`)
  const corners = child(element, 'bndbox') ?? fail('DATA', `data: ${path}: ${what} (${name}) has no <bndbox>`)
  const corner = (side: string): number =>
    number(child(corners, side) ?? fail('DATA', `data: ${path}: ${what} (${name}) has no <${side}>`), path, `${what} (${name})`)
  const flag = (key: string): boolean => {
    const value = textOf(child(element, key)).trim()
    return value !== '' && value !== '0'
  }
  return {
    name,
    box: [corner('xmin') - 1, corner('ymin') - 1, corner('xmax'), corner('ymax')],
    difficult: flag('difficult'),
    truncated: flag('truncated'),
  }
}

const children = (element: XmlElement, name: string): XmlElement[] =>
  element.children.filter((each): each is XmlElement => each instanceof XmlElement && each.name === name)
const child = (element: XmlElement, name: string): XmlElement | undefined => children(element, name)[0]
const textOf = (element: XmlElement | undefined): string =>
  element === undefined ? '' : element.children.map((each) => (each instanceof XmlText ? each.text : '')).join('')

function number(element: XmlElement, path: string, what: string): number {
  const text = textOf(element).trim()
  const value = Number(text)
  return text !== '' && Number.isFinite(value)
    ? value
    : fail('DATA', `data: ${path}: <${element.name}> of ${what} is ${JSON.stringify(text.slice(0, 40))}: expected a number`)
}

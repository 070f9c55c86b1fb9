/** How images are stored beside what is trained on, which is RGB of 8 bits. */
import { extname } from 'node:path'

import { isJpeg, jpegFrame, libvips } from './decode.js'
import { isNpy } from './npy.js'

/** What becomes of images that are not stored as RGB of 8 bits, by what they are. */
const consequences = {
  grey: 'read as RGB of three equal channels',
  CMYK: 'turned into RGB without a colour profile of your own',
  '16 bit': 'read as 8 bit',
  'with alpha': 'what is transparent becomes black',
  'with several frames': 'the first is read',
} as const

const kindsOfName: Readonly<Record<string, string>> = {
  '.jpg': 'jpeg',
  '.jpeg': 'jpeg',
  '.png': 'png',
  '.webp': 'webp',
  '.tif': 'tiff',
  '.tiff': 'tiff',
}

/** What is unusual about how an image that can be read is stored, as sorts with what reading makes of them. */
export async function unusualForms(bytes: Buffer, name: string): Promise<string[]> {
  // Arrays have no form but their own.
  if (isNpy(bytes)) return []
  const { kind, forms } = isJpeg(bytes) ? jpegForms(bytes, name) : await otherForms(bytes, name)
  const named = kindsOfName[extname(name).toLowerCase()]
  return [
    ...forms.map((form) => `${form}: ${consequences[form]}`),
    ...(named === undefined || named === kind ? [] : [`${kind} with the name of a ${named}: read by its content`]),
  ]
}

interface Forms {
  kind: string
  forms: (keyof typeof consequences)[]
}

function jpegForms(bytes: Buffer, name: string): Forms {
  const { components } = jpegFrame(bytes, name)
  return { kind: 'jpeg', forms: components === 1 ? ['grey'] : components === 4 ? ['CMYK'] : [] }
}

async function otherForms(bytes: Buffer, name: string): Promise<Forms> {
  const { format, space, depth, hasAlpha, pages = 1 } = await (await libvips(name))(bytes).metadata()
  return {
    kind: format,
    forms: [
      ...(space === 'b-w' || space === 'grey16' ? (['grey'] as const) : space === 'cmyk' ? (['CMYK'] as const) : []),
      ...(depth === 'ushort' ? (['16 bit'] as const) : []),
      ...(hasAlpha ? (['with alpha'] as const) : []),
      ...(pages > 1 ? (['with several frames'] as const) : []),
    ],
  }
}

// Lint rules of this repository: which folder of src may import which, and what must not be spread into the arguments of a call.
import { dirname, join, relative, sep } from 'node:path'

/** Throws when the folders of the table import each other, directly or by way of others. */
function checkOrder(mayImport) {
  const finished = new Set()
  const visit = (folder, path) => {
    if (finished.has(folder)) return
    if (path.includes(folder)) throw new Error(`eslint.config.js: folders import each other: ${[...path, folder].join(' -> ')}`)
    if (!(folder in mayImport)) throw new Error(`eslint.config.js: ${path.at(-1)} may import ${folder}, which is not in the table`)
    for (const next of mayImport[folder]) visit(next, [...path, folder])
    finished.add(folder)
  }
  for (const folder of Object.keys(mayImport)) visit(folder, [])
}

/** A file of src/FOLDER imports only files of src, of its own folder or of one that the table `mayImport[FOLDER]` names. */
const layout = {
  meta: { type: 'problem', schema: [{ type: 'object' }], messages: { refused: '{{why}}' } },
  create(context) {
    const [{ mayImport }] = context.options
    checkOrder(mayImport)
    const source = join(context.cwd, 'src')
    const folderOf = (path) => {
      const parts = relative(source, path).split(sep)
      return parts[0] === '..' ? undefined : parts.length > 1 ? parts[0] : '.'
    }
    const from = folderOf(context.filename)
    const check = (node) => {
      const name = node.source?.value
      if (typeof name !== 'string' || !name.startsWith('.')) return
      const to = folderOf(join(dirname(context.filename), name))
      const refuse = (why) => context.report({ node: node.source, messageId: 'refused', data: { why } })
      if (to === undefined) refuse(`${name} lies outside of src: what ships does not import what does not`)
      else if (from === '.' || from === to) return
      else if (to === '.') refuse(`${name} is an entry point for users: import the file that has the name`)
      else if (!(from in mayImport)) refuse(`src/${from} is not in the table of eslint.config.js: state what it may import`)
      else if (!mayImport[from].includes(to)) refuse(`src/${from} may not import src/${to} (the table of eslint.config.js)`)
    }
    return { ImportDeclaration: check, ExportNamedDeclaration: check, ExportAllDeclaration: check, ImportExpression: check }
  },
}

/** Every element of an array that is spread into a call is put on the stack: with 100,000 of them the call fails. */
const spread = {
  meta: { type: 'problem', schema: [], messages: { stack: 'a long array overflows the stack here: use a loop, largest() or smallest()' } },
  create(context) {
    const refuse = ({ arguments: given }) => {
      for (const node of given) if (node.type === 'SpreadElement') context.report({ node, messageId: 'stack' })
    }
    const names = '/^(push|unshift|splice|concat|max|min|hypot|of|assign|fromCharCode|fromCodePoint)$/'
    return {
      [`CallExpression[callee.property.name=${names}]`]: refuse,
      [`CallExpression[callee.name=${names}]`]: refuse,
      'NewExpression[callee.name=/Array$/]': refuse,
      // f.apply(x, values) and Reflect.apply(f, x, values) do the same.
      "CallExpression[callee.property.name='apply'] > :last-child.arguments"(node) {
        if (node.type !== 'ArrayExpression') context.report({ node, messageId: 'stack' })
      },
    }
  },
}

export const local = { rules: { layout, spread } }

// A plugin of TypeDoc: documents and the reference of names as one site. A document is a file as GitHub shows it, without front matter: its
// first heading is its title, and `groups` says where it stands. Sources that documents link to become pages too, as a browser that opens a
// file would offer to keep them.
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, extname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

import { Application, Converter, DocumentReflection, KindRouter } from 'typedoc'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const text = (path) => readFileSync(join(root, path), 'utf8')
const within = (folder, ...names) => names.map((name) => `${folder}/${name}.md`)

const groups = {
  Tutorials: within('docs/tutorials', 'classifier', 'segmentation', 'detection', 'method', 'gpu-day'),
  Guide: within('docs', 'method', 'learning', 'data', 'evaluation', 'study', 'distributed', 'scaling', 'errors'),
  'How it works': [
    ...within('docs', 'architecture', 'memory', 'cuda', 'fusion'),
    ...within('docs', 'performance', 'performance-gpu', 'performance-cpu', 'packaging', 'decisions'),
    ...within('bench/results', 'README'),
  ],
  Project: ['examples/README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'],
}
const documents = Object.values(groups).flat()
const groupOf = (path) => Object.keys(groups).find((group) => groups[group].includes(path))

/** The languages of sources that become pages, by the ends of their names. */
const languages = { '.ts': 'ts', '.yml': 'yaml' }
/** Below which document a source stands: the first whose condition it meets. */
const shelves = [
  [/^examples\//, 'examples/README.md'],
  [/^\.github\//, 'docs/packaging.md'],
  [/^/, 'docs/architecture.md'],
]
const shelfOf = (source) => shelves.find(([condition]) => condition.test(source))[1]

/** The sources that documents link to, as paths from the root. */
function linkedSources() {
  const targets = ['README.md', ...documents].flatMap((document) =>
    [...text(document).matchAll(/\]\(([^)#\s:]+)/g)].map(([, target]) => join(dirname(document), target)),
  )
  return [...new Set(targets)].filter((path) => extname(path) in languages).sort()
}

const pathOf = (document) => relative(root, document.project.files.getReflectionPath(document))

/** The page of a document has the path of its file, that of a source with its end. Hidden folders would not be published. */
class SiteRouter extends KindRouter {
  getIdealBaseName(reflection) {
    return reflection.isDocument() ? pathOf(reflection).replace(/^\.|\.md$/g, '') : super.getIdealBaseName(reflection)
  }
}

function addSource(shelf, path) {
  const content = [{ kind: 'text', text: `# ${path}\n\n\`\`\`${languages[extname(path)]}\n${text(path)}\`\`\`\n` }]
  const page = new DocumentReflection(path.replace(/^(examples|src|\.github)\//, ''), shelf, content, {})
  shelf.addChild(page)
  shelf.project.registerReflection(page, undefined, join(root, path))
}

export function load(app) {
  app.renderer.defineRouter('site', SiteRouter)
  app.on(Application.EVENT_BOOTSTRAP_END, () => {
    for (const folder of ['docs', 'docs/tutorials'])
      for (const name of readdirSync(join(root, folder)).filter((file) => file.endsWith('.md')))
        if (groupOf(`${folder}/${name}`) === undefined) app.logger.error(`${folder}/${name} has no place in the table of scripts/site.mjs`)
    app.options.setValue('projectDocuments', documents)
    app.options.setValue('groupOrder', ['Tutorials', 'Guide', 'Reference', ...Object.keys(groups)])
  })
  app.converter.on(Converter.EVENT_CREATE_DOCUMENT, (_, document) => {
    const path = pathOf(document)
    document.name = /^# (.+)$/m.exec(text(path))[1]
    document.frontmatter.group = groupOf(path)
    for (const source of linkedSources()) if (shelfOf(source) === path) addSource(document, source)
  })
}

// Where a program can be broken in one place, and how: for mutate.mjs. A mutant is { start, end, text, line, change }: `text` instead of
// what is between start and end. Messages are left alone: what they say is for people.
import ts from 'typescript'

const { SyntaxKind: Kind } = ts

const operators = new Map([
  [Kind.PlusToken, '-'],
  [Kind.MinusToken, '+'],
  [Kind.AsteriskToken, '/'],
  [Kind.SlashToken, '*'],
  [Kind.PercentToken, '*'],
  [Kind.PlusEqualsToken, '-='],
  [Kind.MinusEqualsToken, '+='],
  [Kind.LessThanToken, '<='],
  [Kind.LessThanEqualsToken, '<'],
  [Kind.GreaterThanToken, '>='],
  [Kind.GreaterThanEqualsToken, '>'],
  [Kind.EqualsEqualsEqualsToken, '!=='],
  [Kind.ExclamationEqualsEqualsToken, '==='],
  [Kind.AmpersandAmpersandToken, '||'],
  [Kind.BarBarToken, '&&'],
])
const methods = new Map(
  [
    ['min', 'max'],
    ['floor', 'ceil'],
    ['every', 'some'],
  ].flatMap(([a, b]) => [
    [a, b],
    [b, a],
  ]),
)
const commutative = /(^|\.)(min|max|minimum|maximum|add|mul|imul|hypot)$/
const forPeople = /^(fail|throwArgument|console\.\w+|.*\.(line|warn|log))$/

/** Another number: the next one, or for a fraction a tenth more. */
const other = (number) => (Number.isInteger(number) ? String(number + 1) : String(Number((number * 1.1).toPrecision(12))))

export function typescriptMutants(source) {
  const file = ts.createSourceFile('mutant.ts', source, ts.ScriptTarget.ES2022, true)
  const found = []
  const add = (node, text, change) => {
    const start = node.getStart(file)
    found.push({ start, end: node.end, text, line: file.getLineAndCharacterOfPosition(start).line + 1, change })
  }
  const isText = (node) => /[`'"]/.test(node.getText(file))
  const isValue = (node) => !ts.isFunctionLike(node) && !ts.isObjectLiteralExpression(node) && !ts.isSpreadElement(node)
  const visit = (node) => {
    if (ts.isTypeNode(node) || ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) return
    if (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node)) return
    if (ts.isExpressionStatement(node) && !ts.isStringLiteral(node.expression))
      add(node, ';', `removed: ${node.getText(file).split('\n')[0]}`)
    if (ts.isIfStatement(node)) add(node.expression, 'false', `if (${node.expression.getText(file)}) never`)
    if (ts.isBinaryExpression(node)) {
      const text = operators.get(node.operatorToken.kind)
      const joins = text === '-' && (isText(node.left) || isText(node.right))
      if (text !== undefined && !joins) add(node.operatorToken, text, `${node.operatorToken.getText(file)} became ${text}`)
    }
    if (ts.isPrefixUnaryExpression(node)) {
      if (node.operator === Kind.ExclamationToken) add(node, node.operand.getText(file), '! removed')
      if (node.operator === Kind.MinusToken) add(node, node.operand.getText(file), '- removed')
    }
    if (ts.isConditionalExpression(node)) {
      const [yes, no] = [node.whenTrue.getText(file), node.whenFalse.getText(file)]
      found.push({
        start: node.whenTrue.getStart(file),
        end: node.whenFalse.end,
        text: `${no} : ${yes}`,
        line: file.getLineAndCharacterOfPosition(node.getStart(file)).line + 1,
        change: `branches of ${node.condition.getText(file)} exchanged`,
      })
    }
    if (ts.isNumericLiteral(node) && node.parent.name !== node)
      add(node, other(Number(node.text)), `${node.text} became ${other(Number(node.text))}`)
    if (node.kind === Kind.TrueKeyword) add(node, 'false', 'true became false')
    if (node.kind === Kind.FalseKeyword) add(node, 'true', 'false became true')
    if (ts.isPropertyAccessExpression(node) && methods.has(node.name.text))
      add(node.name, methods.get(node.name.text), `${node.name.text} became ${methods.get(node.name.text)}`)
    if (ts.isCallExpression(node)) {
      if (forPeople.test(node.expression.getText(file))) return
      const [a, b] = node.arguments
      if (
        b !== undefined &&
        !commutative.test(node.expression.getText(file)) &&
        isValue(a) &&
        isValue(b) &&
        a.getText(file) !== b.getText(file)
      )
        found.push({
          start: a.getStart(file),
          end: b.end,
          text: `${b.getText(file)}, ${a.getText(file)}`,
          line: file.getLineAndCharacterOfPosition(a.getStart(file)).line + 1,
          change: `${node.expression.getText(file).split('\n').at(-1)}: first two arguments exchanged`,
        })
    }
    if (ts.isNewExpression(node) && /Error$/.test(node.expression.getText(file))) return
    ts.forEachChild(node, visit)
  }
  visit(file)
  return found
}

const nativeTokens = [
  [/ (<|<=|>|>=|==|!=|&&|\|\||\+|-|\*|\/|%|\+=|-=) /g, (token) => nativeOperators.get(token)],
  [/\bstd::(min|max|floor|ceil)\b/g, (token) => methods.get(token)],
  [/\b(true|false)\b/g, (token) => (token === 'true' ? 'false' : 'true')],
  [/(?<![\w.<[{])(\d+\.\d+|\d+)(?![\w.>\]}]|f\w)/g, (token) => other(Number(token))],
]
const nativeOperators = new Map(
  [...operators].map(([kind, text]) => [
    ts.tokenToString(kind).replace('===', '==').replace('!==', '!='),
    text.replace('===', '==').replace('!==', '!='),
  ]),
)

/** By lines, as clang-format leaves them: operators have blanks around them, and a statement is a line where it fits. */
export function nativeMutants(source) {
  const found = []
  let at = 0
  for (const [index, whole] of source.split('\n').entries()) {
    const start = at
    at += whole.length + 1
    const comment = whole.search(/(^|\s)\/\//)
    const code = comment < 0 ? whole : whole.slice(0, comment)
    if (/^\s*#|"|'|\btemplate\b|static_assert|\b(using|namespace|struct|typename|case|throw|fail)\b/.test(code)) continue
    for (const [pattern, change] of nativeTokens)
      for (const match of code.matchAll(pattern)) {
        const token = match[1]
        const text = change(token)
        // A pointer or a reference, not an operator.
        if (text === undefined || (token === '*' && /^\s*(const )?[\w:<>]+ $/.test(code.slice(0, match.index)))) continue
        const place = start + match.index + match[0].indexOf(token)
        found.push({ start: place, end: place + token.length, text, line: index + 1, change: `${token} became ${text}` })
      }
    const statement = /^(\s*)[\w.[\]()>*-]+ ([-+*/]?=) [^{]*;$|^(\s*)[\w.:]+\([^{]*\);$/.exec(code)
    if (statement !== null && !/^\s*return/.test(code)) {
      const indent = code.search(/\S/)
      found.push({
        start: start + indent,
        end: start + code.trimEnd().length,
        text: ';',
        line: index + 1,
        change: `removed: ${code.trim()}`,
      })
    }
  }
  return found
}

/** The kinds of backbone that come with the program, one line each. A user's own kind is a module (src/run/backbone.ts). */
import type { BackboneKind } from './backbone.js'
import { resnetKind } from './resnet.js'

const kinds: readonly BackboneKind[] = [resnetKind]

export const backboneKinds: ReadonlyMap<string, BackboneKind> = new Map(kinds.map((kind) => [kind.name, kind]))

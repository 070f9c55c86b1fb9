/** What settings are called in messages: by their names in the library, and by its flags where the command line is what was given them. */
import { AsyncLocalStorage } from 'node:async_hooks'

/** What a setting is called; undefined for one that has no other name than its own. */
export type NameOf = (setting: string) => string | undefined

const names = new AsyncLocalStorage<NameOf>()

/** Runs `body`, in which, whatever it awaits, called() says what `nameOf` says. */
export const withSettingNames = <R>(nameOf: NameOf, body: () => R): R => names.run(nameOf, body)

/** What a message calls a setting. */
export const called = (setting: string): string => names.getStore()?.(setting) ?? setting

/** DenseCL steps on random input, in a process of their own: prints a JSON line for each size of --batch as bench/peers/densecl.py step does. */
import { runSteps } from './steps.js'

runSteps(process.argv.slice(2), (row) => console.log(JSON.stringify(row)))

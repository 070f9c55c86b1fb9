/** DenseCL steps on random input, in a process of their own: a JSON line for each size of --batch, as bench/peers/densecl.py prints. */
import { runSteps } from './steps.js'

runSteps(process.argv.slice(2), (row) => console.log(JSON.stringify(row)))

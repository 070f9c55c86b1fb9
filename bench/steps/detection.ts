/** Training steps of a detector on random images, in a process of their own: a JSON line, as bench/peers/detection.py prints. */
import { runDetectionSteps } from './detectionSteps.js'

runDetectionSteps(process.argv.slice(2), (row) => console.log(JSON.stringify(row)))

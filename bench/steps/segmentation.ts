/** Steps of a segmenting network on random images, in a process of their own: a JSON line, as bench/peers/segmentation.py prints. */
import { runSegmentationSteps } from './segmentationSteps.js'

runSegmentationSteps(process.argv.slice(2), (row) => console.log(JSON.stringify(row)))

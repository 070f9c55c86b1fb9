/** The process that measures a point of growth: `growthPoint.js <axis> <size> <folder>`; the last line that it prints is the point. */
import { measureGrowth } from './growth.js'

const [axis, size, folder] = process.argv.slice(2) as [string, string, string]
console.log(JSON.stringify(await measureGrowth(axis, Number(size), folder)))

/**
 * The log of a run in MLflow, by its REST API (https://mlflow.org/docs/latest/rest-api.html): `mlflow server`, then
 * `densecl pretrain ... --log-to dist/examples/logTo/mlflow.js`. MLFLOW_TRACKING_URI says where the server is; by default on this machine.
 */
import type { LogRecord, LogTo } from '../../src/index.js'

const server = process.env.MLFLOW_TRACKING_URI ?? 'http://127.0.0.1:5000'

async function call(path: string, body: Record<string, unknown>): Promise<unknown> {
  const reply = await fetch(`${server}/api/2.0/mlflow/${path}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  })
  if (!reply.ok) throw new Error(`${server} answers ${path} with ${reply.status}: ${await reply.text()}`)
  return reply.json()
}

/** MLflow's run of a run folder, made when its first record comes. */
const runs = new Map<string, Promise<string>>()

async function runOf(folder: string): Promise<string> {
  const made = (await call('runs/create', { experiment_id: '0', run_name: folder, start_time: Date.now() })) as {
    run: { info: { run_id: string } }
  }
  return made.run.info.run_id
}

const logTo: LogTo = async ({ run, step, values }: LogRecord) => {
  if (!runs.has(run)) runs.set(run, runOf(run))
  const metrics = Object.entries(values)
    .filter(([, value]) => Number.isFinite(value))
    .map(([key, value]) => ({ key, value, timestamp: Date.now(), step }))
  await call('runs/log-batch', { run_id: await runs.get(run), metrics })
}

export default logTo

/** The training loop: batches, steps, the moments at which something is looked at or written, and leaving when asked to. */
import { Loader } from '../data/loader.js'
import type { Batch } from '../data/loaderOptions.js'
import { batchIndices, epochOrder } from '../data/sampler.js'
import { stopWatching } from '../distributed/control.js'
import { pace } from '../distributed/pace.js'
import { ofAll } from '../distributed/speaker.js'
import { learningRate } from '../optim/schedule.js'
import type { ComputeOptions } from '../tensor/compute.js'
import { isInterruption } from '../tensor/interruption.js'
import type { Views } from '../methods/method.js'
import type { Artifacts } from './artifacts.js'
import { deviceTraits } from '../tensor/traits.js'
import type { Monitor } from './monitor.js'
import { knnOf } from './knn.js'
import { graphLine, refusedLine } from './progress.js'
import type { PlannedRun, Run } from './run.js'
import { imagesOf } from '../run/backbone.js'
import { decodePlace } from '../run/placement.js'
import { agreeOnState } from './share.js'
import { Trainer } from './trainer.js'

/** What reads a run's images. */
export function loaderOf({ share, source, built }: PlannedRun): Loader {
  const { imageSize, batchSize, seed, workers, maxBroken, cacheMegabytes, mostPixels } = share
  const { device, compute: dtype } = built.backbone
  const decode = decodePlace(share, device)
  const shared = { imageSize, batchSize, seed, workers, maxBroken, cacheMegabytes, mostPixels, decode, device, dtype }
  return new Loader({ items: source.items, views: 'augmented', augment: share, images: imagesOf(built.backbone), ...shared })
}

/** What sees to a run while it trains. */
export interface Observers {
  monitor: Monitor
  artifacts: Artifacts
}

/** The batches of a run from where it is to its end, of each what this process has of it: all draw the same order of all images. */
export function* requestsOf({
  config,
  share,
  group,
  position,
  steps,
  source,
}: PlannedRun): Generator<{ epoch: number; indices: Int32Array }> {
  let { step } = position
  const own = (indices: Int32Array): Int32Array => indices.slice(group.rank * share.batchSize, (group.rank + 1) * share.batchSize)
  for (let { epoch } = position; epoch < config.epochs; ++epoch, step = 0) {
    const order = epochOrder(config.seed, epoch, source.items.length)
    for (; step < steps; ++step) yield { epoch, indices: own(batchIndices(order, config.batchSize, step)) }
  }
}

export class Loop {
  readonly loader: Loader
  readonly #run: Run
  readonly #trainer: Trainer
  #batch: Batch | undefined
  #announced = false
  #refused = 0

  /** `compute` is what the steps compute with. */
  constructor(run: Run, compute: ComputeOptions) {
    this.#run = run
    this.loader = loaderOf(run)
    this.#trainer = new Trainer(run.built, run.optimizer, {
      views: () => this.#batch!.views() as unknown as Views,
      graph: run.config.graph,
      compute,
      group: run.group,
    })
  }

  /**
   * Steps until the end, or until `interrupted`, which is asked before each of them, or who started the run (src/tensor/interruption.ts)
   * says that it is to end; the run is then saved. Of several processes rank 0 alone has `observers`.
   */
  async train(observers: Observers | undefined, interrupted: () => boolean): Promise<'done' | 'interrupted'> {
    try {
      if ((await this.#steps(observers, interrupted)) === 'done') return 'done'
    } catch (error) {
      if (!isInterruption(error)) throw error
    }
    observers?.monitor.readDue()
    this.#agree()
    this.#save(observers?.artifacts)
    return 'interrupted'
  }

  async #steps({ monitor, artifacts }: Partial<Observers> = {}, interrupted: () => boolean): Promise<'done' | 'interrupted'> {
    const { config, position, steps } = this.#run
    const endOfEpoch = (): Promise<void> => this.#endOfEpoch(artifacts)
    // Saved after the last step of an epoch, before what comes at its end.
    if (position.step === steps) await endOfEpoch()
    for await (const batch of this.loader.batches(requestsOf(this.#run))) {
      if (interrupted()) return 'interrupted'
      this.#batch = batch
      pace.begin(position.globalStep + 1)
      const lr = learningRate(config, position.globalStep, steps)
      const result = this.#trainer.step(position.globalStep, lr, batch.crops())
      position.globalStep += 1
      position.step += 1
      this.#announceGraph()
      monitor?.stepTaken({ result, foundInf: this.#trainer.foundInf, lr, waited: batch.waited })

      // Evaluation and saving are no part of the training rate.
      if (position.step === steps) await (monitor === undefined ? endOfEpoch() : monitor.pauseClock(endOfEpoch))
      else if (this.#saveDue()) {
        this.#agree()
        this.#save(artifacts)
      }
    }
    return 'done'
  }

  /** What comes after an epoch's last step. The position moves on behind kNN: a run that ends in it does it again when it is resumed. */
  async #endOfEpoch(artifacts: Artifacts | undefined): Promise<void> {
    const { position } = this.#run
    this.#agree()
    this.#shareBroken()
    this.#announceRefused()
    const { epochs, knnEvery, denseEvery, checkpointEvery } = this.#run.config
    const epoch = position.epoch + 1
    const [last, kept] = [epoch === epochs, epoch % checkpointEvery === 0]
    const knn = knnEvery > 0 && epoch % knnEvery === 0 && !last
    const dense = denseEvery > 0 && epoch % denseEvery === 0 && !last
    // Evaluations have the memory of the recorded step meanwhile: of the next steps two are taken op by op, and the third is recorded anew.
    if ((knn || dense || kept || last) && deviceTraits(this.#run.built.backbone.device).hostMemory) this.#trainer.graph.dispose()
    if (knn) await (artifacts?.knn(`epoch ${epoch}`) ?? knnOf(this.#run))
    // From here on rank 0 works alone, and the others wait for it in the first call of the next step.
    if (dense) await artifacts?.dense(`epoch ${epoch}`)
    Object.assign(position, { epoch, step: 0 })
    // After kNN: a run that is killed in between does this kNN again instead of losing it.
    if (this.#saveDue()) this.#save(artifacts)
    if (kept) artifacts?.keep()
    if (kept || last) await artifacts?.picture()
  }

  /** Whether the last checkpoint is written after this step: by steps of the run or at ends of epochs, and at its end. */
  #saveDue(): boolean {
    const { checkpointSteps, epochs } = this.#run.config
    const { epoch, step, globalStep } = this.#run.position
    return epoch === epochs || (checkpointSteps > 0 ? globalStep % checkpointSteps === 0 : step === 0)
  }

  #save(artifacts: Artifacts | undefined): void {
    // Steps that nobody has read yet may have gone wrong: what is on the disk is better.
    if (this.#trainer.foundInf.item() === 0) artifacts?.save()
  }

  /** Before somebody reads what was learnt. */
  #agree(): void {
    const { built, group } = this.#run
    agreeOnState(built.state(), group)
  }

  /** Images that cannot be read are counted over all processes, each of which has seen its own. */
  #shareBroken(): void {
    const { group } = this.#run
    if (group.size === 1) return
    const all = group.texts(JSON.stringify([...this.loader.broken]))
    try {
      this.loader.addBroken(all.flatMap((text) => JSON.parse(text) as [string, string][]))
    } catch (error) {
      stopWatching()
      throw ofAll(error)
    }
  }

  /** One line about the recorded step, once. */
  #announceGraph(): void {
    const { graph, savedBytes } = this.#trainer
    if (graph.plan === undefined || this.#announced) return
    this.#announced = true
    this.#run.log.line(graphLine(graph.plan, savedBytes))
  }

  /** One line about files that the GPU's decoder has refused since the last. */
  #announceRefused(): void {
    const { refused } = this.loader
    if (refused.size === this.#refused) return
    this.#refused = refused.size
    this.#run.log.line(refusedLine(refused))
  }

  async close(): Promise<void> {
    await this.loader.close()
    this.#trainer.dispose()
  }
}

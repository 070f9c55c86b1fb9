"""How a step is timed, as bench/steps/steps.ts does it."""
import resource, time

import torch


def timed(step, steps, cuda):
    """The times of a row, in seconds, its memory, the loss that `step` gives, and the version: each of `steps` steps is waited for, then as
    many are taken with one wait at their end."""
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(5 if cuda else 2):
        step()
    wait()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times, host = [], 0.0
    for _ in range(steps):
        start = time.perf_counter()
        step()
        host += time.perf_counter() - start
        wait()
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(steps):
        loss = step()
    wait()
    run = time.perf_counter() - start
    row = {"seconds": sorted(times)[len(times) // 2], "run_seconds": run / steps, "fastest": min(times), "slowest": max(times), "host_seconds": host / steps}
    if cuda:
        row.update(peak_bytes=torch.cuda.max_memory_allocated(), reserved_bytes=torch.cuda.max_memory_reserved())
    else:
        row.update(peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return {**row, "loss": loss.item(), "torch": torch.__version__}

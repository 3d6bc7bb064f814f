"""Do the jobs of a build that no earlier build has done."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.build.finished.ledger import Finished
from export.build.finished.stock import Found, Stock
from export.build.jobs import Job
from export.build.scan import Scan
from export.graph.records import stage_of
from model.checkpoint.directory import Checkpoint
from runtime.bundle.manifest import FileSpec


def run_jobs(checkpoint: Checkpoint, jobs: Sequence[Job], stock: Stock, quiet: bool) -> dict[Job, Finished]:
    """Do what is left of the jobs. The weights that no job reads itself are read and hashed meanwhile.

    Args:
        checkpoint: what the stages are made from.
        jobs: of all backends, in the order in which they are done.
        stock: what earlier builds have finished.
        quiet: say nothing.

    Raises:
        CheckpointError: a weight is not finite.
        RuntimeError: a builder refuses a graph, or made another engine than was asked for.
        OSError: the files cannot be written.
    """
    finished = _taken(checkpoint, jobs, stock, quiet)
    todo = [job for job in jobs if job not in finished]
    scan = Scan(tensor for job in todo if job.options.linked for tensor in checkpoint.stored(stage_of(job.stage)))
    try:
        for job in todo:
            finished[job] = _made(job, checkpoint, stock.folder, scan, quiet)
            stock.add(job.name, finished[job])
    finally:
        scan.close()
    return {job: finished[job] for job in jobs}


def finished_jobs(checkpoint: Checkpoint, jobs: Sequence[Job], stock: Stock) -> dict[str, Found]:
    """What earlier builds have finished of the jobs of all or some backends, by the jobs' names."""
    found = stock.find({job.name: job.key(checkpoint) for job in jobs})
    # A graph for tiles points into the file of the whole one's weights: where that is written again, so is this.
    needed = {job.name: replace(job, stage=stage_of(job.stage)).name for job in jobs if job.engine is None}
    return {name: one for name, one in found.items() if needed.get(name, name) in found}


def _taken(checkpoint: Checkpoint, jobs: Sequence[Job], stock: Stock, quiet: bool) -> dict[Job, Finished]:
    found = finished_jobs(checkpoint, jobs, stock)
    stock.take(found)
    if not quiet:
        for name in found:
            print(f"{name:24}  unchanged, taken from an earlier build", file=sys.stderr)
    return {job: found[job.name].finished for job in jobs if job.name in found}


def _made(job: Job, checkpoint: Checkpoint, folder: Path, scan: Scan, quiet: bool) -> Finished:
    made, second = job.run(checkpoint, folder, quiet)
    if not job.options.linked:
        return made
    # A stage is finished when its weights are known to be sound: the next build takes it as it is.
    digests = scan.digests(checkpoint.stored(stage_of(job.stage)))
    hashes = {path: FileSpec(made.files[path].size, digests[file]) for path, file in second.items()}
    return replace(made, files=made.files | hashes)

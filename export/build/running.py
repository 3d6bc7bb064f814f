"""Do the jobs of a build that no earlier build has done."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from export.build.jobs import Job
from export.build.ledger import Finished, Ledger
from export.build.scan import Scan
from export.graph.records import stage_of
from model.checkpoint.directory import Checkpoint
from runtime.bundle.manifest import FileSpec


def run_jobs(
    checkpoint: Checkpoint, jobs: Sequence[Job], folder: Path, earlier: Ledger, quiet: bool
) -> dict[Job, Finished]:
    """Do what is left of the jobs. The weights that no job reads itself are read and hashed meanwhile.

    Args:
        checkpoint: what the stages are made from.
        jobs: of all backends, in the order in which they are done.
        folder: the unfinished bundle, with a ledger of what a killed build has finished.
        earlier: of the bundle that is replaced; the files of its finished stages are linked to.
        quiet: say nothing.

    Raises:
        CheckpointError: a weight is not finite.
        RuntimeError: a builder refuses a graph, or made another engine than was asked for.
        OSError: the files cannot be written.
    """
    ledger = Ledger.read(folder)
    finished = _taken(checkpoint, jobs, ledger, earlier, quiet)
    todo = [job for job in jobs if job not in finished]
    scan = Scan(tensor for job in todo if job.options.linked for tensor in checkpoint.stored(stage_of(job.stage)))
    try:
        for job in todo:
            finished[job] = _made(job, checkpoint, folder, scan, quiet)
            ledger.add(job.name, finished[job])
        scan.digests()
    finally:
        scan.close()
    return {job: finished[job] for job in jobs}


def _taken(
    checkpoint: Checkpoint, jobs: Sequence[Job], ledger: Ledger, earlier: Ledger, quiet: bool
) -> dict[Job, Finished]:
    finished = {}
    for job in jobs:
        if found := ledger.take(job.name, job.key(checkpoint), earlier):
            finished[job] = found
            if not quiet:
                print(f"{job.name:24}  unchanged, taken from an earlier build", file=sys.stderr)
    return finished


def _made(job: Job, checkpoint: Checkpoint, folder: Path, scan: Scan, quiet: bool) -> Finished:
    made, second = job.run(checkpoint, folder, quiet)
    if not second:
        return made
    digests = scan.digests()
    hashes = {path: FileSpec(made.files[path].size, digests[file]) for path, file in second.items()}
    return replace(made, files=made.files | hashes)

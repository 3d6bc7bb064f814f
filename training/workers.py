"""Several processes that train one module: each takes its share of every batch, and the gradients are averaged.

Where other programs run as well, two processes of one thread are faster than two threads in one process: threads
synchronize after every operation, processes once a step.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


def run_workers(count: int, job: Callable[..., None], *args: object) -> None:
    """Run ``job(*args)`` in `count` processes of one thread each; in this process if `count` is 1.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a worker failed; the others have been stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        if count == 1:
            _work(0, 1, meeting, job, args)
        else:
            # Daemons end with this process.
            torch.multiprocessing.spawn(_work, (count, meeting, job, args), nprocs=count, daemon=True)


def _work(rank: int, count: int, meeting: Path, job: Callable[..., None], args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=count)
    try:
        job(*args)
    finally:
        dist.destroy_process_group()


def worker() -> int:
    """Number of this process, 0 for the one that writes files; 0 outside `run_workers`."""
    return dist.get_rank() if dist.is_initialized() else 0


def worker_count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: int) -> slice:
    """This worker's rows of a batch."""
    return slice(worker(), batch, worker_count())


def wait_for_all() -> None:
    if worker_count() > 1:
        dist.barrier()


def average_gradients(parameters: list[Tensor]) -> None:
    """Replace each gradient by its mean over the workers; the same bits in all of them."""
    if worker_count() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= worker_count()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))

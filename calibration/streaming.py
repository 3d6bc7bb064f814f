"""Run a text encoder or transformer that does not fit into memory: a block's weights are there while it runs.

The released transformers take 37 GB each in float32; their codes take 9.3. Here the parts outside the blocks stay, and
each block is read from the checkpoint, multiplied out, run, and dropped again. As reading takes longer than running,
several *parties*, threads that run the same modules on different inputs, wait for each other at each block and share
what was read.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

from calibration.points import module_prefix, products_of
from model.checkpoint.directory import Checkpoint
from model.layers import set_compute_dtype
from runtime.host_memory import available_memory

_WHOLE = 0.3
"""Part of the available memory up to which a stage is loaded whole, in float32: there may be two of them."""
T = TypeVar("T")


class Parties:
    """Threads that run the same modules in step."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._turn, self._mine = threading.Lock(), threading.local()
        self._barriers: list[threading.Barrier] = []

    def meeting(self, action: Callable[[], object]) -> Callable[[], object]:
        """A function that all parties call: the last of them does `action`, and then all go on."""
        if self.count == 1:
            return action
        self._barriers.append(threading.Barrier(self.count, action))
        return self._barriers[-1].wait

    def take_turn(self) -> None:
        """Wait until no other party computes: each product then has all cores."""
        self._turn.acquire()
        self._mine.held = True

    def give_turn(self) -> None:
        """Let another party compute; nothing if this one has no turn."""
        if getattr(self._mine, "held", False):
            self._mine.held = False
            self._turn.release()

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """What the jobs return, each run by a party of its own.

        Raises:
            ValueError: there are not as many jobs as parties.
            Exception: the first that a job raises; it ends all of them.
        """
        if len(jobs) != self.count:
            raise ValueError(f"there are {len(jobs)} jobs for {self.count} parties")
        if self.count == 1:
            return [jobs[0]()]
        with ThreadPoolExecutor(self.count) as pool:
            futures = [pool.submit(self._guarded, job) for job in jobs]
            try:
                errors = [error for future in futures if (error := future.exception())]
            except BaseException:  # Ctrl-C while waiting
                self._stop()
                raise
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]

    def _guarded(self, job: Callable[[], T]) -> T:
        try:
            return job()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        for barrier in self._barriers:
            barrier.abort()


def loaded(
    checkpoint: Checkpoint,
    stage: str,
    device: str,
    parties: Parties | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A stage's module: whole and in float32 if memory allows, else with its blocks streamed, products in `dtype`.

    Raises:
        CheckpointError: a weight is damaged; for streamed blocks when it is first read.
    """
    size = sum(4 * parameter.numel() for parameter in checkpoint.module(stage).parameters())
    available = available_memory()
    if not is_streamable(stage) or available is None or size <= _WHOLE * available:
        return _taking_turns(checkpoint.load(stage).to(device), parties or Parties(1))
    return streamed(checkpoint, stage, dtype, device, parties)


def is_streamable(stage: str) -> bool:
    """Whether a stage is made of blocks; the VAE is not, and is small."""
    return bool(products_of(stage))


def streamed(
    checkpoint: Checkpoint, stage: str, dtype: torch.dtype, device: str, parties: Parties | None = None
) -> nn.Module:
    """A stage's module on `device` whose products are in `dtype`; each block's weights are read when it is called."""
    parties = parties or Parties(1)
    module = set_compute_dtype(checkpoint.module(stage), dtype)
    kinds = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    sources = checkpoint.sources[stage]

    def read(names: Sequence[str], prefix: str = "") -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): sources[name].read().to(device, kinds[name]) for name in names}

    blocks = {module_prefix(stage, layer): block for layer, block in enumerate(blocks_of(module, stage))}
    outside = [name for name in kinds if not name.startswith(tuple(blocks))]
    module.load_state_dict(read(outside), strict=False, assign=True)
    for prefix, block in blocks.items():
        inside = [name for name in kinds if name.startswith(prefix)]

        def load(block: nn.Module = block, inside: list[str] = inside, prefix: str = prefix) -> None:
            block.load_state_dict(read(inside, prefix), assign=True)

        _attach(block, parties, load, lambda block=block: block.to("meta"))
    return module


def blocks_of(module: nn.Module, stage: str) -> Sequence[nn.Module]:
    """The blocks of a text encoder or transformer, in order."""
    return list(module.get_submodule(module_prefix(stage, 0).rpartition(".0.")[0]).children())


def _taking_turns(module: nn.Module, parties: Parties) -> nn.Module:
    if parties.count > 1:
        module.register_forward_pre_hook(lambda module, inputs: parties.take_turn())
        module.register_forward_hook(lambda module, inputs, output: parties.give_turn(), always_call=True)
    return module


def _attach(block: nn.Module, parties: Parties, load: Callable[[], object], drop: Callable[[], object]) -> None:
    arrive, leave = parties.meeting(load), parties.meeting(drop)

    def before(module: nn.Module, inputs: object) -> None:
        arrive()
        parties.take_turn()

    def after(module: nn.Module, inputs: object, output: object) -> None:
        parties.give_turn()
        if output is not None:  # None behind an error, which ends the other parties at their next meeting
            leave()

    block.register_forward_pre_hook(before)
    block.register_forward_hook(after, always_call=True)

"""The training loop: learning-rate schedule, averaged weights, and state on disk from which a killed run resumes.

Batches are made from the number of their step, so a resumed run sees what an uninterrupted one would have seen.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.workers import average_gradients, wait_for_all, worker

SAVE_SECONDS = 60.0
_LOG_STEPS = 50


class Learner:
    """A module with its optimizers, the average of its weights, and the number of steps done."""

    def __init__(self, module: nn.Module, optimizers: Iterable[torch.optim.Optimizer], average: float) -> None:
        self.module, self.optimizers, self.average = module, list(optimizers), average
        self.averaged = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.step = 0

    def save(self, file: Path) -> None:
        """Write what `load` needs."""
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "averaged": self.averaged,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        save_whole(state, file)

    def load(self, file: Path) -> None:
        """Resume from `file` if it exists."""
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True)
        self.step, self.averaged = state["step"], state["averaged"]
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def update(self, loss: Tensor, rate: float) -> None:
        """One optimizer step at `rate` times the optimizers' own learning rates."""
        loss.backward()
        average_gradients(list(self.module.parameters()))
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, own in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = own * rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        keep = min(self.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.module.state_dict().items():
                self.averaged[name].lerp_(tensor, 1 - keep)


def save_whole(state: object, file: Path) -> None:
    """Replace `file` atomically: a kill leaves the old or the new state."""
    pending = file.with_suffix(".pending")
    torch.save(state, pending)
    os.replace(pending, file)


def rate_at(step: int, steps: int, warmup: int = 100, decay: float = 0.25) -> float:
    """Share of the full learning rate: a linear rise, a plateau, and a fall to zero over the last `decay` of the steps.

    While the plateau lasts, `steps` may still be changed: the steps before are the same.
    """
    rise = min(1.0, (step + 1) / warmup)
    fall = (steps - step) / max(1.0, decay * steps)
    return min(rise, fall, 1.0)


def train(learner: Learner, loss_at: Callable[[int], Tensor], steps: int, file: Path, quiet: bool = False) -> None:
    """Run the steps that are left, saving to `file` every minute and at the end; the losses go to ``.log`` beside it.

    Raises:
        FloatingPointError: a loss is NaN or infinite; the last saved state is kept.
    """
    learner.load(file)
    wait_for_all()
    first = worker() == 0
    saved, losses, started = time.monotonic(), [], time.monotonic()
    for step in tqdm(
        range(learner.step, steps),
        desc=file.stem,
        initial=learner.step,
        total=steps,
        disable=quiet or not first,
        mininterval=5,
    ):
        loss = loss_at(step)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"{file.stem}: the loss is {losses[-1]} at step {step}")
        learner.update(loss, rate_at(step, steps))
        if not first:
            continue
        if learner.step % _LOG_STEPS == 0 or learner.step == steps:
            with file.with_suffix(".log").open("a", encoding="utf-8") as log:
                log.write(f"{learner.step} {sum(losses) / len(losses):.5f} {time.monotonic() - started:.0f}\n")
            losses = []
        if time.monotonic() - saved > SAVE_SECONDS or learner.step == steps:
            learner.save(file)
            saved = time.monotonic()
    wait_for_all()

"""The process that makes inputs and has them read. It may hang or die; `scripts.fuzz.campaign` sees that."""

import itertools
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings

from scripts.fuzz.case import LONGEST, Case, Maker, World, make_case
from scripts.fuzz.findings import Finding, Origin
from scripts.fuzz.judge import Fault, Outcome, judge, limit_memory

MUTATION, PROPERTY = "mutation", "property"
SLICE_SECONDS = 2.0
"""How long one target goes on before the next one's turn."""
BLOCK = 25
"""Inputs that hypothesis makes at a time."""
SHRINKING_SECONDS = 15.0
"""How long hypothesis looks for a smaller input with the same fault."""
DEADLY_SECONDS = 20
"""Processor time after which the kernel ends a worker with SIGPROF: the input hangs."""
SPARE_BYTES = 4 << 30
"""Address space of a worker beside what it has when it starts."""
INPUT = "input"
"""File with what is read just now, for the campaign."""


@dataclass(frozen=True)
class Began:
    """An input is about to be read; it is in the worker's file `INPUT`."""

    origin: Origin


@dataclass(frozen=True)
class Ended:
    """It was read."""

    outcome: Outcome


@dataclass(frozen=True)
class Broken:
    """The worker itself has failed, not a reader."""

    traceback: str


Message = Began | Ended | Finding | Broken


@dataclass
class Share:
    """The part of a campaign that one worker does."""

    seed: int
    first: int
    """Index of the first input of each target."""
    step: int
    """From one index to the next: the number of workers."""
    until: float
    """Time of `time.monotonic` at which to stop."""
    count: int | None = None
    """Inputs of each target and source, or None for as many as there is time for."""
    done: dict[tuple[str, str], int] = field(default_factory=dict)
    """Index from which to go on, by target and source; a worker that was started anew has a past."""
    turn: int = 0
    """Number of the target whose turn it is."""

    def left(self, target: str, source: str) -> Iterator[int]:
        """Indices of the inputs, or blocks, that are not done."""
        start = self.done.get((target, source), self.first)
        size = BLOCK if source == PROPERTY else 1
        last = None if self.count is None else -(-self.count // size)
        return itertools.takewhile(lambda index: last is None or index < last, itertools.count(start, self.step))


def work(
    targets: Mapping[str, Maker],
    world: World,
    folder: Path,
    share: Share,
    tell: Callable[[Message], object],
) -> None:
    """Go through the targets again and again until there is no time, or no input, left."""
    shutil.rmtree(folder, ignore_errors=True)  # of a worker that an input has ended
    # Numbers and not names, which messages would seem to hold when they hold the path.
    cases = {name: make_case(make, world, folder / str(n)) for n, (name, make) in enumerate(targets.items())}
    limit_memory(SPARE_BYTES)
    worker = _Worker(folder, share, tell)
    order = list(cases.items())
    order = order[share.turn :] + order[: share.turn]
    while time.monotonic() < share.until and any([worker.turn(name, case) for name, case in order]):
        pass


class _Worker:
    def __init__(self, folder: Path, share: Share, tell: Callable[[Message], object]) -> None:
        self.folder, self.share, self.tell = folder, share, tell
        self.patience = 0.0
        """Time of `time.monotonic` at which hypothesis must be content with what it has."""

    def turn(self, name: str, case: Case) -> bool:
        """One slice of mutations, and one block of hypothesis; False when nothing is left of either."""
        left = self._mutations(name, case)
        return self._properties(name, case) or left if case.strategy is not None else left

    def _mutations(self, name: str, case: Case) -> bool:
        end = min(self.share.until, time.monotonic() + SLICE_SECONDS)
        for index in self.share.left(name, MUTATION):
            if time.monotonic() > end:
                return True
            content = input_of(case, name, self.share.seed, index)
            self._read(case, Origin(name, MUTATION, self.share.seed, index), content)
            self.share.done[name, MUTATION] = index + self.share.step
        return False

    def _properties(self, name: str, case: Case) -> bool:
        assert case.strategy is not None
        index = next(self.share.left(name, PROPERTY), None)
        if index is None or time.monotonic() > self.share.until:
            return False
        origin = Origin(name, PROPERTY, self.share.seed, index)
        known: set[str] = set()
        while (finding := self._block(case, origin, known)) is not None:  # each fault once, as small as it becomes
            known.add(finding.fault.signature)
            self.tell(finding)
        self.share.done[name, PROPERTY] = index + self.share.step
        return True

    def _block(self, case: Case, origin: Origin, known: set[str]) -> Finding | None:
        """A block of hypothesis's inputs; the smallest one with a fault that is not `known`."""
        last: list[Finding] = []

        def check(content: bytes) -> None:
            if last and time.monotonic() > self.patience:  # it may shrink no further; the last one must fail again
                if content == last[-1].content:
                    raise _FaultError(last[-1].fault.signature)
                return
            fault = self._judged(case, origin, content).fault
            if fault is not None and fault.signature not in known:
                if not last:
                    self.patience = time.monotonic() + SHRINKING_SECONDS
                last.append(Finding(origin, fault, content))
                raise _FaultError(fault.signature)

        phases = (Phase.generate, Phase.shrink)
        quiet = settings(
            max_examples=BLOCK,
            database=None,
            deadline=None,
            phases=phases,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        try:
            seed(f"{origin.seed}/{origin.target}/{origin.index}")(quiet(given(case.strategy)(check)))()
        except _FaultError:
            return last[-1]
        return None

    def _read(self, case: Case, origin: Origin, content: bytes) -> None:
        fault = self._judged(case, origin, content).fault
        if fault is not None:
            self.tell(Finding(origin, fault, content))

    def _judged(self, case: Case, origin: Origin, content: bytes) -> Outcome:
        (self.folder / INPUT).write_bytes(content)
        self.tell(Began(origin))
        signal.setitimer(signal.ITIMER_PROF, DEADLY_SECONDS)
        try:
            outcome = judge(case, content)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.tell(Ended(outcome))
        return outcome


class _FaultError(Exception):
    """What hypothesis looks for; its text is the fault's signature."""


def input_of(case: Case, target: str, seed: int, index: int) -> bytes:
    """The input of a number."""
    random = Random(f"{seed}/{target}/{index}")
    return case.mutate(random, random.choice(case.examples))[:LONGEST]


def check_examples(name: str, case: Case) -> None:
    """Raise RuntimeError unless the case's reader takes its examples: what refuses everything tests nothing."""
    for number, example in enumerate(case.examples):
        outcome = judge(case, example)
        if not outcome.accepted or outcome.fault:
            fault = outcome.fault or Fault("refused", outcome.message)
            raise RuntimeError(f"{name}: the valid example {number} is not taken: {fault}")

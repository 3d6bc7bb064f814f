"""Workers that read broken inputs, what becomes of them, and the figures of it all."""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from scripts.fuzz.case import Maker, World
from scripts.fuzz.findings import Finding, Origin, write
from scripts.fuzz.judge import Fault
from scripts.fuzz.worker import INPUT, PROPERTY, Began, Broken, Ended, Message, Share, work

BLOCKED_SECONDS = 120
"""Time on the clock after which an input that takes no processor time hangs as well."""
KEPT = 3
"""Inputs that are kept of one fault."""


@dataclass
class Figures:
    """Of one target."""

    mutations: int = 0
    properties: int = 0
    """Inputs by hypothesis, those of shrinking included."""
    accepted: int = 0
    slowest: float = 0.0
    """Seconds of processor time."""
    peak_bytes: int = 0

    @property
    def inputs(self) -> int:
        return self.mutations + self.properties


@dataclass
class Results:
    """Of a campaign."""

    figures: dict[str, Figures] = field(default_factory=dict)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each fault was seen, by target and the fault's signature."""
    files: dict[tuple[str, str], list[Path]] = field(default_factory=dict)
    """Where the first inputs of each are."""
    described: dict[tuple[str, str], Fault] = field(default_factory=dict)


class Campaign:
    """Workers, each with a folder and a share of the inputs."""

    def __init__(
        self, targets: Mapping[str, Maker], world: World, folder: Path, findings: Path, say: Callable[[str], object]
    ):
        """`folder`: for the workers' files. `findings`: gets what is found. `say` is called with each new fault."""
        self.targets, self.world, self.folder, self.findings, self.say = targets, world, folder, findings, say
        self.results = Results({name: Figures() for name in targets})

    def run(self, seed: int, workers: int, seconds: float, count: int | None = None) -> Results:
        """Go on for `seconds`, or until each target has had `count` inputs of each source."""
        until = time.monotonic() + seconds
        with contextlib.ExitStack() as ending:
            running = [_Running(self, Share(seed, number, workers, until, count)) for number in range(workers)]
            for one in running:
                ending.callback(one.stop)
            while running:
                wait([one.connection for one in running], timeout=1)
                running = [one for one in running if one.look()]
        return self.results

    def ended(self, origin: Origin, message: Ended) -> None:
        """Count an input."""
        figures = self.results.figures[origin.target]
        if origin.source == PROPERTY:
            figures.properties += 1
        else:
            figures.mutations += 1
        figures.accepted += message.outcome.accepted
        figures.slowest = max(figures.slowest, message.outcome.seconds)
        figures.peak_bytes = max(figures.peak_bytes, message.outcome.peak_bytes)

    def found(self, finding: Finding) -> None:
        """Count a fault; keep the first inputs that show it."""
        key = finding.origin.target, finding.fault.signature
        self.results.faults[key] += 1
        self.results.described.setdefault(key, finding.fault)
        files = self.results.files.setdefault(key, [])
        if len(files) < KEPT:
            file = write(finding, self.findings)
            if not files:
                self.say(f"{finding.origin.target}: {finding.fault.kind}: {finding.fault.what[:300]} ({file})")
            files.append(file)


class _Running:
    """A worker's process, and what is known of it."""

    def __init__(self, campaign: Campaign, share: Share) -> None:
        self.campaign, self.share = campaign, share
        self.folder = campaign.folder / f"worker-{share.first}"
        self.begun: Origin | None = None
        self.since = time.monotonic()
        self.process, self.connection = self._start()

    def look(self) -> bool:
        """Take what the worker has told, and start it anew if an input has ended it; False when it is done."""
        while self.connection.poll():
            try:
                self._take(self.connection.recv())
            except EOFError:
                break
        if self.process.is_alive() and time.monotonic() - self.since < BLOCKED_SECONDS:
            return True
        if blocked := self.process.is_alive():
            self.process.kill()
        self.process.join()
        code = self.process.exitcode
        if code == 0:
            return False
        if self.begun is None:
            raise RuntimeError(f"a worker ended with {code} before it read anything; run with --workers 1 to see why")
        self._lost(self.begun, blocked or code == -signal.SIGPROF, code)
        self.process, self.connection = self._start()
        return True

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.join()

    def _take(self, message: Message) -> None:
        self.since = time.monotonic()
        if isinstance(message, Began):
            self.begun = message.origin
        elif isinstance(message, Finding):
            self.campaign.found(message)
        elif isinstance(message, Broken):
            raise RuntimeError(f"a worker has failed:\n{message.traceback}")
        elif self.begun is not None:
            self.campaign.ended(self.begun, message)
            self._after(self.begun)

    def _after(self, origin: Origin) -> None:
        """Go on behind an input, should the worker have to be started anew."""
        size = 0 if origin.source == PROPERTY else self.share.step  # a block may have more inputs
        self.share.done[origin.target, origin.source] = origin.index + size

    def _lost(self, origin: Origin, hangs: bool, code: int | None) -> None:
        """An input has ended the worker."""
        what = "it takes no end" if hangs else f"it ends the process: {_ending(code)}"
        content = (self.folder / INPUT).read_bytes()
        self.campaign.found(Finding(origin, Fault("hang" if hangs else "crash", what), content))
        self.share.done[origin.target, origin.source] = origin.index + self.share.step
        names = list(self.campaign.targets)
        self.share.turn = (names.index(origin.target) + 1) % len(names)
        self.begun = None

    def _start(self) -> tuple[BaseProcess, Connection]:
        self.since = time.monotonic()
        theirs, ours = multiprocessing.Pipe()
        campaign = self.campaign
        # Forked: what the readers import takes seconds, and a worker may have to be started often.
        process = multiprocessing.get_context("fork").Process(
            target=_run, args=(campaign.targets, campaign.world, self.folder, self.share, theirs, ours), daemon=True
        )
        process.start()
        theirs.close()
        return process, ours


def _run(
    targets: Mapping[str, Maker], world: World, folder: Path, share: Share, tell: Connection, other: Connection
) -> None:
    other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the campaign's
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    try:
        work(targets, world, folder, share, tell.send)
    except Exception:  # whatever it is, whoever runs the campaign must know
        tell.send(Broken(traceback.format_exc()))


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

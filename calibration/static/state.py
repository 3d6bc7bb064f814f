"""What an interrupted calibration leaves behind, so that the next run continues there.

The file is a compressed npz: ``identity`` (JSON text of everything that determines the measurement), ``done`` (prompts
measured), and for each of ``names`` its ``amax`` and ``counts``.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.static.histogram import BINS, Histogram, empty_histogram
from runtime.atomic_files import write_whole
from runtime.errors import cut

_ARRAYS = ("identity", "done", "names", "amax", "counts")
_SHOWN = 200
"""Characters of what a library says of a damaged file."""
VERSION = 1
"""To be raised when the file or the bins change."""


class StateError(ValueError):
    """The state is damaged or of another calibration."""


@dataclass(frozen=True)
class State:
    """What has been measured."""

    done: int
    """Prompts, from the first one on."""
    histograms: dict[str, Histogram]

    def after(self, measured: dict[str, Histogram]) -> "State":
        """The state with one more prompt."""
        return State(self.done + 1, {name: old + measured[name] for name, old in self.histograms.items()})


def first_state(names: list[str]) -> State:
    """Nothing measured yet."""
    return State(0, {name: empty_histogram() for name in names})


def state_file(output: Path) -> Path:
    """``.ranges.json.state.npz`` beside ``ranges.json``."""
    return output.with_name(f".{output.name}.state.npz")


@dataclass(frozen=True)
class StateFile:
    """The file of one calibration's state."""

    path: Path | None
    """None to keep nothing."""
    identity: dict[str, Any]
    """Plain values that determine what is measured: a state with others is not continued."""

    def save(self, state: State) -> None:
        """Write the state whole or not at all."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            identity=np.array(self._text()),
            done=np.array(state.done),
            names=np.array(list(state.histograms)),
            amax=np.array([histogram.amax for histogram in state.histograms.values()]),
            counts=np.array([histogram.counts for histogram in state.histograms.values()]),
        )
        write_whole(self.path, buffer.getvalue())

    def load(self, names: list[str], prompts: int) -> State | None:
        """The saved state, with histograms of these tensors and at most so many prompts; None when there is no file.

        Raises:
            StateError: the file belongs to another calibration or is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in _ARRAYS}
        except Exception as error:  # readers of archives and arrays raise what they like: zlib.error, TokenError, …
            raise StateError(f"{self.path} is damaged ({cut(str(error), _SHOWN)})") from error
        if str(arrays["identity"]) != self._text():
            raise StateError(f"{self.path} belongs to another calibration")
        done, amax, counts = arrays["done"], arrays["amax"], arrays["counts"]
        if (
            arrays["names"].tolist() != names
            or (amax.shape, amax.dtype) != ((len(names),), np.float64)
            or (counts.shape, counts.dtype) != ((len(names), BINS), np.int64)
            or (done.shape, done.dtype) != ((), np.int64)
            or not 1 <= done <= prompts
        ):
            raise StateError(f"{self.path} is damaged (its arrays do not fit the model)")
        return State(int(done), {n: Histogram(float(amax[i]), counts[i]) for i, n in enumerate(names)})

    def _text(self) -> str:
        return json.dumps({"version": VERSION} | self.identity, sort_keys=True)

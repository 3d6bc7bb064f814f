"""The file ``selftest.npz``: inputs of every graph, and what the checkpoint gives for them in float32.

Format, version 1. A zip of arrays, as `numpy.savez_compressed` writes it. ``about`` holds UTF-8 JSON, one object with
exactly the fields of `About`; the other arrays have the names that it uses. An array that is the output of one graph
and an input of another is there once.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from runtime.bundle.json_fields import DecodeError, decode
from runtime.errors import BundleError, MissingFileError, shown
from runtime.graph import Call

SELF_TEST = "selftest.npz"
"""Name of the file in a bundle."""
VERSION = 1
_ABOUT = "about"


@dataclass(frozen=True)
class SmallPicture:
    """The picture that the whole pipeline makes; its prompt is also the text encoder's input."""

    prompt: str
    side: int
    """Width and height in pixels."""
    steps: int
    seed: int


@dataclass(frozen=True)
class SelfTest:
    """What a bundle is compared with."""

    key: str
    """Of what the calls were computed from: a build whose key is the same takes them over."""
    picture: SmallPicture
    calls: Mapping[str, Sequence[Call]]
    """Inputs and float32 outputs, by graph."""
    host: Mapping[str, np.ndarray]
    """What numpy computes from the manifest and the tokenizer; see `runtime.selftest.host`."""
    facts: Mapping[str, str]
    """What the manifest says; see `runtime.selftest.host`."""
    tolerances: Mapping[str, Mapping[str, float]]
    """Largest relative error of a graph, by ``ort`` or the name of a set of engines, and graph."""


@dataclass(frozen=True)
class _CallNames:
    """A call, with the names of its arrays."""

    inputs: dict[str, str]
    output: str


@dataclass(frozen=True)
class About:
    """The JSON object in the file; see `SelfTest`."""

    version: int
    key: str
    picture: SmallPicture
    calls: dict[str, tuple[_CallNames, ...]]
    host: tuple[str, ...]
    facts: dict[str, str]
    tolerances: dict[str, dict[str, float]]


def encode(test: SelfTest) -> bytes:
    """The bytes of the file; the same for the same contents."""
    arrays: dict[str, np.ndarray] = {}
    calls = {
        graph: tuple(
            _CallNames(
                {name: _name_of(array, f"{graph}.{index}.{name}", arrays) for name, array in call.feeds.items()},
                _name_of(call.output, f"{graph}.{index}.output", arrays),
            )
            for index, call in enumerate(made)
        )
        for graph, made in test.calls.items()
    }
    arrays |= {f"host.{name}": array for name, array in test.host.items()}
    tolerances = {name: dict(graphs) for name, graphs in test.tolerances.items()}
    about = About(VERSION, test.key, test.picture, calls, tuple(test.host), dict(test.facts), tolerances)
    text = json.dumps(asdict(about), ensure_ascii=False).encode()
    stream = io.BytesIO()
    np.savez_compressed(stream, **{_ABOUT: np.frombuffer(text, np.uint8)}, **arrays)  # type: ignore[arg-type]  # numpy takes the names for its own options
    return stream.getvalue()


def read_self_test(directory: Path) -> SelfTest:
    """The self-test of the bundle in `directory`.

    Raises:
        MissingFileError: it has none.
        BundleError: the file is damaged, or of another version.
    """
    file = directory / SELF_TEST
    if not file.is_file():
        raise MissingFileError(
            f"the bundle {directory} has no {SELF_TEST}; python -m export.build writes one, unless "
            "--no-self-test is given"
        )
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib, numpy and the tokenizer that reads its headers each have their own
        raise BundleError(f"{file} is truncated or altered ({error}); copy or build the bundle again") from error
    try:
        return _decoded(arrays)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: {error}") from error
    except KeyError as error:
        raise BundleError(f"{file} lacks the array {error}; copy or build the bundle again") from error


def _decoded(arrays: Mapping[str, np.ndarray]) -> SelfTest:
    data = json.loads(arrays[_ABOUT].tobytes())
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise DecodeError(f"the version is {shown(version)}, this runtime reads {VERSION}")
    about = decode(data, About, _ABOUT)
    calls = {
        graph: tuple(
            Call({name: arrays[stored] for name, stored in call.inputs.items()}, arrays[call.output]) for call in made
        )
        for graph, made in about.calls.items()
    }
    host = {name: arrays[f"host.{name}"] for name in about.host}
    return SelfTest(about.key, about.picture, calls, host, about.facts, about.tolerances)


def _name_of(array: np.ndarray, name: str, arrays: dict[str, np.ndarray]) -> str:
    """The name under which an array is stored already; else it is stored under `name`."""
    for known, other in arrays.items():
        if other.dtype == array.dtype and np.array_equal(other, array):
            return known
    arrays[name] = array
    return name

"""What is fuzzed: a reader, valid examples of what it reads, and how they are broken."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

LONGEST = 4 << 20
"""Bytes of the longest input: what takes long with these is slow, and not merely large."""
PEAK_BYTES = 256 << 20
"""Memory that reading an input may take, beside what the program had before."""

Mutation = Callable[[Random, bytes], bytes]
"""(random generator, a valid example) -> an input."""


@dataclass(frozen=True)
class Case:
    """One reader of one kind of file."""

    file: Path
    """Where each input is written before it is read."""
    examples: tuple[bytes, ...]
    """Valid ones: the reader takes them."""
    mutate: Mutation
    read: Callable[[], object]
    """Reads `file`; raises what the command would tell its user."""
    names: tuple[str, ...] = ()
    """A message must hold one of these, such as the name of the file; empty where there is no file to name."""
    _: KW_ONLY
    may_refuse: bool = True
    """False for what was written to be read again: damaged, it is as good as missing."""
    strategy: "SearchStrategy[bytes] | None" = None
    """Inputs by hypothesis, which shrinks the ones that fail; None where mutations serve better."""
    peak_bytes: int = PEAK_BYTES
    """Memory that reading may take, beside what the program had before."""


@dataclass(frozen=True)
class World:
    """Valid files that cases are made from; nobody changes them."""

    bundle: Path
    """The demo's bundle in float32."""
    checkpoint: Path
    """A tiny one with random weights in bfloat16, in diffusers' layout."""


Maker = Callable[[World, Path], Case]
"""Makes a case with its files in an empty folder."""


def make_case(make: Maker, world: World, folder: Path) -> Case:
    """The case in a folder that is new."""
    folder.mkdir(parents=True)
    return make(world, folder)

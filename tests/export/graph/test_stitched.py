"""Weights that lie in several places of files, as one piece of memory."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from export.graph.stitched import PAGE, Stitched, can_stitch


@dataclass(frozen=True)
class Part:
    file: Path
    offset: int
    nbytes: int


@pytest.fixture
def content(tmp_path):
    """A file of seven pages, and their bytes."""
    data = np.random.default_rng(0).integers(0, 256, 7 * PAGE, dtype=np.uint8).tobytes()
    (tmp_path / "weights").write_bytes(data)
    return tmp_path / "weights", data


@pytest.mark.parametrize("begin", [0, 1, 104, PAGE - 1])
def test_parts_follow_one_another(content, begin):
    file, data = content
    sizes = [(3 * PAGE + begin, 2 * PAGE), (begin, PAGE), (5 * PAGE + begin, 100)]
    parts = [Part(file, offset, size) for offset, size in sizes]
    assert can_stitch(parts)
    with Stitched(parts) as stitched:
        found = ctypes.string_at(stitched.address, stitched.size)
    assert found == b"".join(data[offset : offset + size] for offset, size in sizes)
    assert file.read_bytes() == data, "nothing is written to the file"


def test_what_cannot_be_stitched(content):
    file, _ = content
    assert not can_stitch([Part(file, 0, PAGE), Part(file, PAGE + 8, PAGE)]), "they begin at different places of a page"
    assert not can_stitch([Part(file, 0, PAGE - 8), Part(file, 2 * PAGE, PAGE)]), "the first ends inside a page"

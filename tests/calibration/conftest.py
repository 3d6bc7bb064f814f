"""Fixtures: a tiny checkpoint, and its distilled form."""

import shutil
from pathlib import Path

import peers
import pytest

from calibration.ranges import Ranges
from calibration.record import calibrate
from model.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="session")
def checkpoint(peer) -> Checkpoint:
    """Three layers, three heads of 32."""
    return open_checkpoint(peer("head32", "diffusers")[1])


@pytest.fixture
def distilled(checkpoint, tmp_path) -> Checkpoint:
    """The same without an unconditional transformer."""
    directory = peers.copy(checkpoint.directory, tmp_path / "distilled")
    shutil.rmtree(directory / "unconditional_transformer")
    return open_checkpoint(directory)


@pytest.fixture(scope="session")
def measured(checkpoint) -> Ranges:
    """Ranges from one prompt and two steps."""
    return calibrate(checkpoint, ["a red circle"], steps=2, width=256, height=256, quiet=True)


@pytest.fixture
def prompts(tmp_path) -> Path:
    """A file of three prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\nein blaues Quadrat\n一只猫\n", encoding="utf-8")
    return file

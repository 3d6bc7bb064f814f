"""Checkpoints with random weights, as scripts/make_checkpoint.py writes them."""

import os
import shutil
import subprocess
import sys

import pytest
from support.processes import ROOT, make_checkpoint

from model.checkpoint.directory import open_checkpoint
from scripts.make_checkpoint import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "wide", "--layers", "0"), "--layers is 0, wanted 1 to 1000"),
        (("--size", "demo", "--output", "."), "the output . exists"),
    ],
)
def test_make_checkpoint_refuses(tmp_path, arguments, message):
    command = [sys.executable, "-m", "scripts.make_checkpoint", "--output", tmp_path / "made", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_make_checkpoint_looks_at_the_disk_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 0, 10**9))
    assert main(["--size", "full", "--output", str(tmp_path / "made")]) == 1
    assert "the checkpoint needs 26.94 GB, but" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_made_checkpoints_are_read(tmp_path, layout, dtype):
    """With every tensor that the model wants and no other."""
    directory = make_checkpoint(tmp_path / "made", "--size", "demo", "--layout", layout, "--dtype", dtype)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.layout == layout
    weight = checkpoint.sources["dit_cond"]["layers.0.attention.qkv.weight"]
    assert weight.coded == (dtype == "fp8") and len(weight.parts) == (1 if layout == "original" else 3)
    values = weight.read()
    assert 0.9 < float(values.std() * values.shape[1] ** 0.5) < 1.1

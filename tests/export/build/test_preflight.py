"""Disk and memory, counted before the work."""

import shutil
from collections import namedtuple

import pytest
from support.build_command import refused

from export.build.preflight import check_needs, needs_of, weight_bytes
from export.demo_model import DEMO_CHECKPOINT
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from model.checkpoint.directory import open_checkpoint


def test_disk_too_small(tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**7, 10**7))
    refused(capsys, tmp_path, "GB, but ")


@pytest.mark.parametrize(("precision", "fits"), [("fp32", False), ("fp8", True), ("fp8-weight-only", True)])
def test_space_is_counted_by_precision(tmp_path, monkeypatch, precision, fits):
    """24 MB of float32 weights, 9 MB of float8 ones, and 64 MiB for everything else."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, (64 << 20) + 14_000_000))
    types = precision_of(precision, None, "ort")
    checkpoint, recipe = open_checkpoint(DEMO_CHECKPOINT), recipe_of(types)
    weights = {stage: weight_bytes(checkpoint, stage, types, recipe) for stage in checkpoint.sources}
    needs = needs_of("ort", weights, linked=False)
    if fits:
        check_needs(needs, tmp_path / "bundle")
    else:
        with pytest.raises(OSError, match=r"the bundle needs 0.09 GB, but .* has only 0.08 GB left"):
            check_needs(needs, tmp_path / "bundle")


def test_memory_too_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("export.build.preflight.available_memory", lambda: 500_000_000)
    refused(capsys, tmp_path, "the build needs 1.1 GB, but only 0.5 GB are available; close other programs, ")

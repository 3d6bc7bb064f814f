"""Disk and memory, counted before the work."""

import shutil
from collections import namedtuple

import pytest
from support.build_command import refused

from export.build.options import BuildOptions
from export.build.preflight import check_needs, needs_of
from export.build.variant import variants_of
from export.demo_model import DEMO_CHECKPOINT
from export.graph.records import graphs_of
from model.checkpoint.description import describe
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
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    (variant,) = variants_of(BuildOptions(precision=precision), checkpoint, describe(checkpoint))
    needs = needs_of(variant, checkpoint, graphs_of(checkpoint.sources), tmp_path)
    if fits:
        check_needs(needs, tmp_path / "bundle")
    else:
        with pytest.raises(OSError, match=r"the bundle needs 0.09 GB, but .* has only 0.08 GB left"):
            check_needs(needs, tmp_path / "bundle")


def test_graphs_that_are_left_are_counted(tmp_path):
    """A graph for tiles has the weights of the whole one in ONNX, and its own in an engine."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    weights = {}
    for backend in ("ort", "rtx"):
        options = BuildOptions(precision="fp16", backend=(backend,), target=("sm89",))
        (variant,) = variants_of(options, checkpoint, describe(checkpoint))
        none = needs_of(variant, checkpoint, (), tmp_path)
        assert none.scratch == 0 and none.seconds < 10
        for graphs in (("vae_decoder_tile",), ("vae_decoder",), ("vae_decoder", "vae_decoder_tile")):
            needs = needs_of(variant, checkpoint, graphs, tmp_path)
            weights[backend, graphs] = needs.disk - none.disk
            assert needs.seconds > none.seconds and needs.memory >= none.memory
    one = weights["ort", ("vae_decoder",)]
    assert one > 2_000_000 and weights["ort", ("vae_decoder_tile",)] == 0
    assert weights["ort", ("vae_decoder", "vae_decoder_tile")] == one
    assert weights["rtx", ("vae_decoder_tile",)] == weights["rtx", ("vae_decoder",)] > 0
    assert weights["rtx", ("vae_decoder", "vae_decoder_tile")] == 2 * weights["rtx", ("vae_decoder",)]


def test_memory_too_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("export.build.preflight.available_memory", lambda: 500_000_000)
    refused(capsys, tmp_path, "the build needs 1.1 GB, but only 0.5 GB are available; close other programs, ")

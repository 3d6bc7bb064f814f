"""Bundles that share the checkpoint's files: what they take, and what happens where files cannot be shared."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import onnx_ir as ir
import pytest
from support import peers

from export.build import running
from export.build.command import main
from export.build.finished.ledger import LEDGER
from export.build.options import BuildOptions
from export.build.variant import variants_of
from export.build.weight_sizes import linked_bytes
from export.demo_model import DEMO_CHECKPOINT
from export.graph.records import is_tile
from export.graph.stage import stage_graph
from export.measurements import Measurements
from model.checkpoint.description import describe
from model.checkpoint.directory import open_checkpoint
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest

LINK = ["--weights", "link", "--precision", "fp8-weight-only"]
SPARE = 64 << 20
CONSTANTS = 1000
"""Bytes that the constants of a graph may have, which are no weights."""


@pytest.fixture
def demo(tmp_path):
    """A copy of the demo checkpoint on the file system of the test's bundles."""
    return peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8", "int8", "fp8-weight-only"])
@pytest.mark.parametrize("form", ["diffusers", "original-bf16", "original-fp8", "original-nf4"])
def test_bytes_of_what_cannot_be_linked(peer, precision, form):
    """Types that the files do not hold, joined projections, 4-bit weights, codes made here: the graphs say the same."""
    checkpoint = open_checkpoint(peer("head32", form)[1])
    options = BuildOptions(precision=precision, weights="link")
    (variant,) = variants_of(options, checkpoint, describe(checkpoint))
    for job in variant.jobs(checkpoint, Measurements()):
        if is_tile(job.stage):
            continue
        tensors = [v.const_value for v in stage_graph(checkpoint, job.stage, job.options).graph.initializers.values()]
        linked = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
        written = sum(tensor.nbytes for tensor in tensors if tensor not in linked)
        counted, files = linked_bytes(checkpoint, job.stage, variant.types, variant.recipe)
        assert 0 <= written - counted < CONSTANTS
        assert set(files) == {Path(tensor.path).resolve() for tensor in linked}


def no_links(monkeypatch, reason="Invalid cross-device link"):
    def refuse(*_, **__):
        raise OSError(18, reason)

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_files_that_cannot_be_linked_are_told_and_counted(demo, tmp_path, capsys, monkeypatch, quiet):
    no_links(monkeypatch)
    assert main([*LINK, "--checkpoint", str(demo), "--output", str(tmp_path / "bundle"), *quiet]) == 0
    shown = capsys.readouterr().err
    # The VAE's file holds another type than its graphs want.
    assert "warning: --weights link copies 3 of 3 files, 0.01 GB, which cannot be linked to " in shown
    assert "(Invalid cross-device link)" in shown and str(demo) in shown
    assert ("needs 0.08 GB of disk" in shown) == (not quiet), "64 MiB, 6 MB of copies, and 4 MB of weights"
    check_files(tmp_path / "bundle", read_manifest(tmp_path / "bundle").files)


def test_room_is_wanted_for_copies(demo, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, SPARE + 6_000_000))
    arguments = [*LINK, "--checkpoint", str(demo), "--output", str(tmp_path / "bundle"), "--quiet"]
    with monkeypatch.context() as patched:
        no_links(patched, "Operation not permitted")
        assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert "(Operation not permitted)" in shown and "error: the bundle needs 0.08 GB, but " in shown
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert main(arguments) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr)
def test_half_a_copy_is_never_part_of_a_bundle(demo, tmp_path, capsys, monkeypatch, error):
    """The disk is full, or the user has had enough, in the middle of the third file."""
    no_links(monkeypatch)
    arguments = [*LINK, "--checkpoint", str(demo), "--output", str(tmp_path / "bundle"), "--quiet"]
    copied, copyfile = [], shutil.copyfile

    def stop(source, target):
        copied.append(source)
        if len(copied) < 3:
            return copyfile(source, target)
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", stop)
        assert main(arguments) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "text_encoder" in (tmp_path / ".bundle.partial" / LEDGER).read_text()
    if isinstance(error, OSError):
        assert "cannot write the weights of dit_uncond: No space left on device" in capsys.readouterr().err
    assert main(arguments) == 0
    check_files(tmp_path / "bundle", read_manifest(tmp_path / "bundle").files)


def test_a_name_of_another_checkpoints_file_is_not_taken(demo, tmp_path, monkeypatch):
    """A killed build of another checkpoint has left second names that this one's files have, too."""
    other = peers.copy(DEMO_CHECKPOINT, tmp_path / "other")
    (other / "SHA256SUMS").unlink()
    peers.rewrite(
        other / "transformer" / "diffusion_pytorch_model.safetensors", lambda t: t["layers.0.ffn_norm1.weight"].mul_(2)
    )
    made = running._made

    def die(job, *arguments):
        if job.stage == "dit_uncond":
            raise KeyboardInterrupt
        return made(job, *arguments)

    monkeypatch.setattr(running, "_made", die)
    assert main([*LINK, "--checkpoint", str(other), "--output", str(tmp_path / "bundle"), "--quiet"]) == 130
    monkeypatch.undo()
    name = "onnx/weights/transformer-diffusion_pytorch_model.safetensors"
    assert (tmp_path / ".bundle.partial" / name).samefile(other / "transformer/diffusion_pytorch_model.safetensors")
    assert main([*LINK, "--checkpoint", str(demo), "--output", str(tmp_path / "bundle"), "--quiet"]) == 0
    assert (tmp_path / "bundle" / name).samefile(demo / "transformer/diffusion_pytorch_model.safetensors")
    check_files(tmp_path / "bundle", read_manifest(tmp_path / "bundle").files)

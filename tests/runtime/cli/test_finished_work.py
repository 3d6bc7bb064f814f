"""What has been made is there, and is told as it is, whatever becomes of previews, messages and pipes."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.command_line import FAST, names, write
from support.processes import ROOT

from runtime.image import preview
from runtime.image.output_files import read_settings


def test_a_preview_that_cannot_be_written_costs_no_picture(run, folder, monkeypatch, capsys):
    tried = []

    def refuse(file, _):
        tried.append(file)
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(preview, "write_whole", refuse)
    assert run("--prompt", "x", "--steps", 4, "--preview", "p.png", "--preview-every", 1) == 0
    assert names(folder) == ["ideogram4.png"] and len(tried) == 1
    error = capsys.readouterr().err
    assert error.count("warning: no more previews: No space left on device: p.png") == 1
    assert "wrote ideogram4.png" in error


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_names_that_are_no_utf8(run, folder, capsys, suffix):
    """Linux has any bytes in names. The settings hold them as JSON's escapes of Python's."""
    image, output = os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"th\xe9") + suffix
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(folder / image)
    options = ("--image", image, "--output", output, "--seed", 1, "--json", *FAST)
    assert run("--prompt", "x", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["start"]["image"] == image and told["files"] == [output]
    assert read_settings(folder / output)["start"]["image"] == image
    write("p.jsonl", {"prompt": "x", "image": image})
    options = ("--prompt-file", "p.jsonl", "--output", output, "--seed", 1, *FAST)
    assert run(*options) == 0 and run(*options) == 0, "the second run finds the picture finished"


def test_a_bundles_name_that_is_no_utf8(demo_bundle, folder, run, capsys):
    """JSON's escapes can spell what UTF-8 cannot."""
    bundle = shutil.copytree(demo_bundle, folder / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"name": "caf\udce9"}))
    assert run("--prompt", "x", "--bundle", bundle, *FAST) == 0
    assert read_settings(folder / "ideogram4.png")["bundle"] == "caf\udce9"


def shell(folder, bundle, arguments, streams, **environment):
    command = f'set -o pipefail; "{sys.executable}" -m runtime --bundle "{bundle}" --steps 1 {arguments} {streams}'
    environment = os.environ | {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&-"])
def test_messages_that_nobody_gets(demo_bundle, folder, streams):
    write("p.txt", "x", "y")
    done = shell(folder, demo_bundle, "--prompt-file p.txt", streams)
    assert done.returncode == 0, done.stderr
    assert names(folder) == ["ideogram4-0001.png", "ideogram4-0002.png", "p.txt"]
    assert [read_settings(folder / name)["prompt"] for name in names(folder)[:2]] == ["x", "y"]


def test_a_reader_that_leaves_costs_no_picture(demo_bundle, folder):
    write("p.txt", *"abcd")
    done = shell(folder, demo_bundle, "--json --prompt-file p.txt", "| head -1")
    assert done.returncode == 0 and json.loads(done.stdout)["prompt"] == "a"
    assert b"failed" not in done.stderr and b"Broken" not in done.stderr and done.stderr.count(b"wrote") == 4
    assert len(list(folder.glob("*.png"))) == 4


@pytest.mark.parametrize("arguments", ["--prompt x", "--prompt-file p.txt"])
def test_settings_that_cannot_be_printed_are_told_once_behind_the_pictures(demo_bundle, folder, arguments):
    write("p.txt", "x", "y")
    done = shell(folder, demo_bundle, f"--json {arguments}", ">/dev/full")
    told = b"error: standard output cannot be written (No space left on device); all files were written"
    assert done.returncode == 1 and done.stderr.count(told) == 1 and b"failed" not in done.stderr
    assert (
        len(list(folder.glob("*.png"))) == done.stderr.count(b"wrote ideogram4") == (2 if "p.txt" in arguments else 1)
    )


def test_a_terminal_without_the_prompts_letters(demo_bundle, folder):
    done = shell(folder, demo_bundle, "--json --prompt 日本", "", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and json.loads(done.stdout)["prompt"] == "日本"
    assert read_settings(folder / "ideogram4.png")["prompt"] == "日本"

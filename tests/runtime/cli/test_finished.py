"""A second run over the same prompt file: what counts as finished."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.command_line import FAST, write

from runtime.cli.main import main
from runtime.image.output_files import png


def test_a_second_run_makes_what_is_missing(run, folder, loads, capsys):
    write("p.txt", "x", "y", "z")
    assert run("--prompt-file", "p.txt", "--seed", 1, *FAST) == 0
    (folder / "ideogram4-0002.png").unlink()
    before = {name: (folder / name).stat().st_mtime_ns for name in ("ideogram4-0001.png", "ideogram4-0003.png")}
    capsys.readouterr()
    assert run("--prompt-file", "p.txt", "--seed", 1, "--steps", 1) == 0
    error = capsys.readouterr().err
    assert "2 of 3 are finished already" in error and "wrote ideogram4-0002.png" in error
    assert before == {name: (folder / name).stat().st_mtime_ns for name in before}
    assert run("--prompt-file", "p.txt", "--seed", 1, *FAST) == 0 and len(loads) == 2, "a third run has nothing to do"


def test_without_a_seed_any_seed_is_the_wanted_one(run, folder, loads):
    write("p.txt", "x")
    assert run("--prompt-file", "p.txt", *FAST) == 0
    assert run("--prompt-file", "p.txt", *FAST) == 0 and len(loads) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--seed", 2), "seed"),
        (("--width", 320), "width"),
        (("--guidance", 5), "sampling"),
        (("--unconditional", "conditional"), "unconditional"),
        (("--wrap",), "prompt"),
    ],
)
def test_other_settings_are_not_finished(run, folder, capsys, change, named):
    write("p.txt", "x")
    assert run("--prompt-file", "p.txt", "--seed", 1, *FAST) == 0
    before = (folder / "ideogram4-0001.png").read_bytes()
    options = ("--prompt-file", "p.txt", *(() if "--seed" in change else ("--seed", 1)), *change)
    assert run(*options, *FAST) == 1
    error = capsys.readouterr().err
    assert f"p.txt:1: the output ideogram4-0001.png exists and was made with another {named}; choose another" in error
    assert (folder / "ideogram4-0001.png").read_bytes() == before
    assert run(*options, "--overwrite", *FAST) == 0
    assert (folder / "ideogram4-0001.png").read_bytes() != before


def test_another_bundle_is_not_finished(run, folder, demo_bundle, capsys):
    write("p.txt", "x")
    assert run("--prompt-file", "p.txt", *FAST) == 0
    other = Path(shutil.copytree(demo_bundle, folder / "other"))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"fingerprint": "0" * 64}))
    assert main(["--bundle", str(other), "--prompt-file", "p.txt", "--steps", "1", "--quiet"]) == 1
    assert "was made with another fingerprint" in capsys.readouterr().err


def test_part_of_a_batch_is_not_finished(run, folder):
    write("p.txt", "x")
    options = ("--prompt-file", "p.txt", "--num-images", 2, "--seed", 1, *FAST)
    assert run(*options) == 0
    wanted = (folder / "ideogram4-0001-1.png").read_bytes()
    (folder / "ideogram4-0001-1.png").unlink()
    assert run(*options) == 0
    assert (folder / "ideogram4-0001-1.png").read_bytes() == wanted
    (folder / "ideogram4-0001-0.png").write_bytes(wanted)  # the second picture in the place of the first
    assert run(*options) == 1


NO_SETTINGS = png(np.zeros((16, 16, 3), np.uint8), {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        png(np.zeros((16, 16, 3), np.uint8), {})[:60],
        NO_SETTINGS,
        png(np.zeros((16, 16, 3), np.uint8), ["x"]),
    ],
    ids=["empty", "header", "cut", "no settings", "odd settings"],
)
def test_files_that_are_no_finished_pictures(run, folder, capsys, content):
    write("p.txt", "x")
    (folder / "ideogram4-0001.png").write_bytes(content)
    assert run("--prompt-file", "p.txt", *FAST) == 1
    error = capsys.readouterr().err
    reason = "was made with another prompt" if content == NO_SETTINGS else "was not made by trt-generate"
    assert re.search(f"p.txt:1: the output ideogram4-0001.png exists (and|but) {reason}", error)
    assert "Traceback" not in error
    assert (folder / "ideogram4-0001.png").read_bytes() == content

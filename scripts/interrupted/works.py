"""Commands that are interrupted, with what they begin with."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import calibration.command
import export.build.command
import export.triton.__main__
import runtime.cli.main
from scripts.interrupted.processes import Command

OUTPUT = "bundle"
_PICTURES = 10


@dataclass(frozen=True)
class Work:
    """A command and what is in its folder before."""

    name: str
    command: Command
    prepare: Callable[[Path], object] = lambda folder: None
    """Puts files into the folder."""
    whole: tuple[str, ...] = ()
    """Directories that appear, or are replaced, as a whole."""


def works(checkpoint: Path, bundle: Path) -> list[Work]:
    """All of them, on a tiny checkpoint and its bundle in float32."""
    return [
        _build(checkpoint, "fp32"),
        _build(checkpoint, "fp8"),
        _build(checkpoint, "int8"),
        _build(checkpoint, "fp8", "--weights", "link"),
        _rebuild(checkpoint, bundle),
        Work(
            "trt-generate --jsonl",
            _generate(bundle, "--prompt-file", "prompts.jsonl", "--output", "pictures/p.png"),
            _prompts,
        ),
        Work("trt-generate, a prompt a line", _generate(bundle, "--prompt-file", "prompts.txt", *_FEW), _prompts),
        Work(
            "trt-generate --num-images", _generate(bundle, "--prompt", "x", "--num-images", "4", *_FEW, "--overwrite")
        ),
        Work("calibration", _calibration(checkpoint, "--output", "channels.safetensors", "--overwrite")),
        Work(
            "export.triton",
            lambda: export.triton.__main__.main([str(bundle), "--output", "models", "--stream", "--overwrite"]),
            whole=("models",),
        ),
    ]


_FEW = ("--seed", "7", "--steps", "2", "--output", "p.webp")


def _build(checkpoint: Path, precision: str, *options: str) -> Work:
    arguments = ["--checkpoint", str(checkpoint), "--precision", precision, "--output", OUTPUT, *options]
    name = " ".join(("build", precision, *options))
    return Work(name, lambda: export.build.command.main(arguments), whole=(OUTPUT,))


def _rebuild(checkpoint: Path, bundle: Path) -> Work:
    """A build in the place of a bundle that is there already."""
    work = _build(checkpoint, "fp8", "--overwrite")
    return Work("re" + work.name, work.command, lambda folder: shutil.copytree(bundle, folder / OUTPUT), work.whole)


def _generate(bundle: Path, *options: str) -> Command:
    return lambda: runtime.cli.main.main(["--bundle", str(bundle), "--threads", "1", *options])


def _calibration(checkpoint: Path, *options: str) -> Command:
    return lambda: calibration.command.main(["--checkpoint", str(checkpoint), "--limit", "2", *options])


def _prompts(folder: Path) -> None:
    (folder / "pictures").mkdir()
    lines = [{"prompt": f"circle {number}", "seed": number, "steps": 2} for number in range(_PICTURES)]
    lines[3] |= {"num_images": 3}
    lines[5] |= {"output": "named.jpg"}
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "prompts.txt").write_text("\n".join(f"square {number}" for number in range(_PICTURES)))

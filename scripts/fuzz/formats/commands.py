"""Command lines: options that are odd, missing, or do not go together.

An input is a JSON list of arguments. What argparse refuses ends with exit code 2, which is as good as an error. Nothing
is computed: the commands get a checkpoint that is not there, or stop where the work would begin.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType

from hypothesis import strategies as st

import calibration.command
import export.build.arguments
import export.inspect
import export.sensitivity
import export.triton.__main__
import export.triton.arguments
import export.verify.command
import runtime.cli.main
import runtime.cli.options
from export.atomic_directory import check_output
from export.build.variant import variants_of
from model.checkpoint.description import describe
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.lora import with_loras
from model.checkpoint.tensor_files import CheckpointError
from scripts.fuzz.case import Case, World
from scripts.fuzz.mutation.texts import odd
from scripts.fuzz.strategies import texts

_PLAUSIBLE = ("0", "1", "0.5", "256", "fp8", "int8", "auto", "out.png", "7x2,3x2", "0.1:0.9", "cpu", "V4_TURBO_12", "x")


def trt_generate(world: World, folder: Path) -> Case:
    """``trt-generate --dry-run``."""
    example = ["--prompt", "a red circle", "--seed", "1", "--width", "256"]
    last = ["--bundle", str(world.bundle), "--dry-run"]
    return _unguarded(folder, runtime.cli.main, runtime.cli.options.build_parser(), example, last)


def build(world: World, folder: Path) -> Case:
    """``python -m export.build``, up to where it would trace the first graph."""
    parser = export.build.arguments.build_parser("export.build")
    example = ["--precision", "fp8", "--output", "bundle", "--backend", "ort"]

    def run(arguments: Sequence[str]) -> None:
        options = export.build.arguments.read_options(parser.parse_args(arguments))
        check_output(options.output, options.overwrite)
        checkpoint = with_loras(open_checkpoint(world.checkpoint), options.lora, options.lora_target)
        variants_of(options, checkpoint, describe(checkpoint))

    return _case(folder, parser, example, run)


def triton(world: World, folder: Path) -> Case:
    """``python -m export.triton``."""
    parser = export.triton.arguments.build_parser("export.triton")
    example = [str(world.bundle), "--output", "models", "--overwrite", "--quiet", "--bundle-path", "/models"]
    return _unguarded(folder, export.triton.__main__, parser, example)


def calibrate(world: World, folder: Path) -> Case:
    """``python -m calibration``."""
    example = ["--output", "channels.safetensors", "--limit", "1", "--steps", "1"]
    return _without_checkpoint(folder, calibration.command, example)


def verify(world: World, folder: Path) -> Case:
    """``python -m export.verify``."""
    return _without_checkpoint(folder, export.verify.command, [str(world.bundle), "--output", "report"])


def sensitivity(world: World, folder: Path) -> Case:
    """``python -m export.sensitivity``."""
    return _without_checkpoint(folder, export.sensitivity, ["--output", "sensitivity.json"])


def inspect(world: World, folder: Path) -> Case:
    """``python -m export.inspect``."""
    return _unguarded(folder, export.inspect, export.inspect.build_parser(), [str(world.bundle), "--stage", "dit_cond"])


def _without_checkpoint(folder: Path, module: ModuleType, example: Sequence[str]) -> Case:
    """A command that gets as far as an empty checkpoint."""
    empty = folder / "empty"
    empty.mkdir()
    case = _unguarded(folder, module, module.build_parser(), example, ["--checkpoint", str(empty)])

    def read() -> None:
        try:
            case.read()
        except CheckpointError as error:
            if str(empty) not in str(error):
                raise

    return replace(case, read=read)


def _unguarded(
    folder: Path, module: ModuleType, parser: argparse.ArgumentParser, example: Sequence[str], last: Sequence[str] = ()
) -> Case:
    """A command's `main`, which gets the arguments `last`, too. Its errors are seen before `guard` prints them."""

    def run(arguments: Sequence[str]) -> None:
        guard, module.guard = module.guard, lambda program, job: job()
        try:
            module.main([*arguments, *last])
        finally:
            module.guard = guard

    return _case(folder, parser, example, run)


def _case(
    folder: Path, parser: argparse.ArgumentParser, example: Sequence[str], run: Callable[[Sequence[str]], object]
) -> Case:
    file, inside = folder / "arguments.json", folder / "inside" / "cwd"
    options = [option for action in parser._actions for option in action.option_strings]
    choices = [str(choice) for action in parser._actions for choice in action.choices or ()]

    def read() -> None:
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir(parents=True)
        os.chdir(inside)
        try:
            run(json.loads(file.read_bytes()))
        except SystemExit as ended:
            if ended.code not in (0, 2):
                raise

    def mutate(random: Random, content: bytes) -> bytes:
        return json.dumps(_mutated(random, json.loads(content), options, choices)).encode()

    words = st.lists(st.sampled_from((*options, *_PLAUSIBLE)) | texts, max_size=6)
    strategy = words.map(lambda found: json.dumps([_argument(word) for word in (*example, *found)]).encode())
    return Case(file, (json.dumps([*example]).encode(),), mutate, read, strategy=strategy)


def _mutated(random: Random, arguments: list[str], options: Sequence[str], choices: Sequence[str]) -> list[str]:
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        value = random.choice((random.choice(_PLAUSIBLE), random.choice((*choices, "x")), odd(random)))
        place = random.randrange(len(arguments) + 1)
        what = random.randrange(5)
        if what <= 2:
            arguments[place:place] = [random.choice(options), *[value] * random.choice((0, 1, 1, 1, 2))]
        elif what == 3:
            arguments[place : place + 1] = [value]
        else:
            del arguments[place : place + 1]
    return [_argument(argument) for argument in arguments]


def _argument(text: str) -> str:
    """A text as the system can hand it to a program: it ends before NUL, and bytes that are no UTF-8 have a form."""
    return os.fsdecode(text.partition("\0")[0].encode("utf-8", "surrogatepass"))

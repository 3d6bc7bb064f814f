"""Prompt files: one job a line.

A file whose name ends in ``.jsonl`` has one JSON object a line, with ``prompt`` or ``caption`` (an object) and any of
the keys of `OPTIONS`, which are the command's options by the same names: ::

    {"prompt": "a red circle", "seed": 7, "output": "circle.png"}
    {"caption": {"compositional_deconstruction": {...}}, "width": 512, "height": 256, "guidance": "7x18,3x2"}
    {"prompt": "the same house in winter", "image": "house.jpg", "strength": 0.7, "mask": "garden.png"}

Any other file, and standard input, has one prompt a line: plain text or a caption. Blank lines count but ask for
nothing. What a line does not say is taken from the command line. Pictures are named after the command's output and the
line, ``ideogram4-0003.png`` for line 3, unless the line has an ``output``; that is relative to the folder of the
command's output. What a line reads, ``image`` and ``mask``, is relative to the folder of the prompt file.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.cli.jobs import Job
from runtime.prompt.caption import CaptionError, read_json
from runtime.prompt.caption_schema import shown
from runtime.prompt.reading import STANDARD_INPUT, PromptReader, read_text
from runtime.sampling.schedule import parse_guidance

OPTIONS: dict[str, tuple[tuple[type, ...], str]] = {
    "output": ((str,), "a file name"),
    "layout": ((str,), "a file name"),
    "width": ((int,), "an integer"),
    "height": ((int,), "an integer"),
    "preset": ((str,), "a name"),
    "steps": ((int,), "an integer"),
    "guidance": ((int, float, str, list), "a number, a list of numbers, or a schedule such as '7x45,3x3'"),
    "mu": ((int, float), "a number"),
    "std": ((int, float), "a number"),
    "seed": ((int,), "an integer"),
    "num_images": ((int,), "an integer"),
    "unconditional": ((str,), "a name"),
    "image": ((str,), "a file name"),
    "strength": ((int, float), "a number"),
    "fit": ((str,), "a name"),
    "mask": ((str,), "a file name"),
    "mask_feather": ((int,), "an integer"),
}
"""What a line of a JSONL file may say beside its prompt: JSON's types for it, and what messages call them."""


def read_lines(name: str) -> Iterator[tuple[str, int, str]]:
    """Yield the lines of a prompt file that are not blank, as (place, number from 1, text without the line end).

    Args:
        name: a UTF-8 file, or ``-`` for standard input.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, or all lines are blank.
    """
    lines = read_text(name).split("\n")
    label = "<stdin>" if name == STANDARD_INPUT else name
    if not any(map(str.strip, lines)):
        raise ValueError(f"the prompt file {label} has no prompt")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{label}:{number}", number, line.removesuffix("\r")


def jsonl_folder(name: str) -> Path | None:
    """Folder of a prompt file with JSON objects; None for one of prompts."""
    return Path(name).parent if Path(name).suffix.lower() == ".jsonl" else None


def job_of_line(where: str, number: int, line: str, jsonl: Path | None, defaults: Job, reader: PromptReader) -> Job:
    """The job that a line asks for.

    Args:
        where: file and line, for messages.
        number: of the line.
        line: its text.
        jsonl: folder of the file with JSON objects; None for a file of prompts.
        defaults: the command line's job.
        reader: of prompts and captions.

    Raises:
        ValueError: the line is not of the form above; the message does not name the line.
    """
    output = numbered_line(defaults.output, number)
    layout = numbered_line(defaults.layout, number) if defaults.layout else None
    named = replace(defaults, where=where, output=output, layout=layout)
    if jsonl is None:
        return replace(named, prompt=reader.prompt(line))
    try:
        values = read_json(line)
    except CaptionError as error:
        raise ValueError(f"the line is not in order: {error.defects[0]}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the line is {shown(values)}, wanted an object")
    return _with_options(replace(named, prompt=_prompt(values, reader)), values, jsonl)


def numbered_line(file: Path, number: int) -> Path:
    """``out-0003.png`` for line 3."""
    return file.with_name(f"{file.stem}-{number:04d}{file.suffix}")


def _prompt(values: dict[str, Any], reader: PromptReader) -> str:
    known = ("prompt", "caption", *OPTIONS)
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f"the line has the key {shown(unknown[0])}, wanted only {', '.join(known)}")
    if ("prompt" in values) == ("caption" in values):
        raise ValueError(
            "the line has both a prompt and a caption, wanted one of them"
            if "prompt" in values
            else "the line has neither a prompt nor a caption"
        )
    if "caption" in values:
        return reader.caption(values["caption"])
    if not isinstance(values["prompt"], str):
        raise ValueError(f"prompt is {shown(values['prompt'])}, wanted text")
    return reader.prompt(values["prompt"])


def _with_options(job: Job, values: dict[str, Any], folder: Path) -> Job:
    given = {key: _option(key, value) for key, value in values.items() if key in OPTIONS}
    for keys, start in ((("output", "layout"), job.output.parent), (("image", "mask"), folder)):
        given |= {key: start / given[key] for key in keys if key in given}
    # A preset and a number of steps exclude each other; the line's choice takes the place of the command's.
    if "preset" in given:
        given = {"steps": None} | given
    if "steps" in given:
        given = {"preset": None} | given
    return replace(job, **given)


def _option(key: str, value: Any) -> Any:
    kinds, wanted = OPTIONS[key]
    if type(value) not in kinds or value == "":  # a bool is an int, and no number here
        raise ValueError(f"{key} is {shown(value)}, wanted {wanted}")
    if key == "guidance" and isinstance(value, str):
        return parse_guidance(value)
    if key == "guidance" and isinstance(value, list):
        return tuple(_number(f"guidance[{place}]", weight) for place, weight in enumerate(value))
    return _number(key, value) if float in kinds else value


def _number(where: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{where} is {shown(value)}, wanted a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{where} is an integer of {value.bit_length()} bits, wanted a number") from None

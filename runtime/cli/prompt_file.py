"""Prompt files: one job a line.

A file whose name ends in ``.jsonl`` has one JSON object a line: a ``prompt`` or a ``caption`` (an object), and any of
``output``, ``layout`` and the fields of `runtime.Request`, by the same names: ::

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
from runtime.errors import RequestError, shown
from runtime.prompt.caption import CaptionError, read_json
from runtime.prompt.reading import STANDARD_INPUT, PromptReader, ReadPrompt, read_text
from runtime.request import KINDS, PICTURE, check_file_name

_FILES = ("output", "layout")
"""What a line may say beside its prompt and the fields of a request."""
_KEYS = ("prompt", "caption", *_FILES, *(name for name in KINDS if name != "prompt"))


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
        raise RequestError(f"the prompt file {label} has no prompt")
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
        return _with_prompt(named, reader.prompt(line))
    try:
        values = read_json(line)
    except CaptionError as error:
        raise RequestError(f"the line is not in order: {error.defects[0]}") from error
    if not isinstance(values, dict):
        raise RequestError(f"the line is {shown(values)}, wanted an object")
    return _with_values(_with_prompt(named, _prompt(values, reader)), values, jsonl)


def numbered_line(file: Path, number: int) -> Path:
    """``out-0003.png`` for line 3."""
    return file.with_name(f"{file.stem}-{number:04d}{file.suffix}")


def _with_prompt(job: Job, prompt: ReadPrompt) -> Job:
    return replace(job, request=replace(job.request, prompt=prompt.text), caption=prompt.caption)


def _prompt(values: dict[str, Any], reader: PromptReader) -> ReadPrompt:
    if unknown := [key for key in values if key not in _KEYS]:
        raise RequestError(f"the line has the key {shown(unknown[0])}, wanted only {', '.join(_KEYS)}")
    if ("prompt" in values) == ("caption" in values):
        both = "both a prompt and a caption, wanted one of them" if "prompt" in values else None
        raise RequestError(f"the line has {both or 'neither a prompt nor a caption'}")
    if "caption" in values:
        return reader.caption(values["caption"])
    if not isinstance(values["prompt"], str):
        raise RequestError(f"prompt is {shown(values['prompt'])}, wanted text")
    return reader.prompt(values["prompt"])


def _with_values(job: Job, values: dict[str, Any], folder: Path) -> Job:
    folder_of_output = job.output.parent
    output = folder_of_output / check_file_name("output", values["output"]) if "output" in values else job.output
    layout = folder_of_output / check_file_name("layout", values["layout"]) if "layout" in values else job.layout
    fields = {key: _field(key, value, folder) for key, value in values.items() if key in KINDS and key != "prompt"}
    # A preset and a number of steps exclude each other; the line's choice takes the place of the command's.
    if "preset" in fields:
        fields = {"steps": None} | fields
    if "steps" in fields:
        fields = {"preset": None} | fields
    return replace(job, request=replace(job.request, **fields), output=output, layout=layout)


def _field(key: str, value: Any, folder: Path) -> Any:
    """A value as `Request` takes it, which checks it. A key that is there has a value: null is none."""
    kind = KINDS[key]
    if kind is PICTURE:
        return folder / check_file_name(key, value)
    if value is None or value == "":
        raise RequestError(f"{key} is {shown(value)}, wanted {kind.wanted}")
    return value

"""Whether pictures are there already, so that a second run of a prompt file makes only what is missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.image.output_files import read_settings


def finished_files(files: Sequence[Path], wanted: dict[str, Any], overwrite: bool) -> list[Path]:
    """The files of a job that exist and were made with its settings.

    Args:
        files: one for each picture of the job.
        wanted: the settings that determine the picture, as JSON has them. Settings that the file has beyond these are
            not compared: the backend and the device round differently, but do not make another picture.
        overwrite: whether a file of other settings may be replaced.

    Raises:
        FileExistsError: a file has other settings or none, and may not be replaced.
    """
    finished = []
    for index, file in enumerate(files):
        if not file.exists():
            continue
        difference = _difference(file, wanted | {"index": index})
        if not difference:
            finished.append(file)
        elif not overwrite:
            raise FileExistsError(f"the output {file} {difference}; choose another --output or add --overwrite")
    return finished


def _difference(file: Path, wanted: dict[str, Any]) -> str:
    """What tells a file from the wanted picture; empty if nothing does."""
    try:
        settings = read_settings(file)
    except (OSError, ValueError) as error:
        return f"exists but was not made by trt-generate ({error})"
    for key, value in wanted.items():
        if key not in settings or settings[key] != value:
            return f"exists and was made with another {key.replace('_', ' ')}"
    return ""

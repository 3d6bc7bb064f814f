"""A report's directory: ``quality.json`` and ``quality.html``, both or none."""

import json
from pathlib import Path

from export.atomic_directory import check_directory, rename
from runtime.bundle.json_fields import parse

JSON, HTML = "quality.json", "quality.html"
FORMAT = "ideogram4-quality"


def check_output(output: Path, overwrite: bool) -> None:
    """Raise FileExistsError or FileNotFoundError unless a report may be written to `output`.

    Even with `overwrite` only a report's directory to which nothing has been added is replaced.
    """
    check_directory(output, overwrite, "report", lambda: _is_report(output))


def _is_report(directory: Path) -> bool:
    if not directory.is_dir() or {file.name for file in directory.iterdir()} != {JSON, HTML}:
        return False
    try:
        return parse((directory / JSON).read_bytes(), JSON)["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError):
        return False


def publish(partial: Path, report: dict, page: str, output: Path) -> None:
    """Write both files into `partial`, and give it its name; an old report of that name is replaced."""
    text = json.dumps({"format": FORMAT, "version": 1, **report}, indent=1, ensure_ascii=False, allow_nan=False)
    (partial / JSON).write_text(text + "\n", encoding="utf-8")
    (partial / HTML).write_text(page, encoding="utf-8")
    rename(partial, output)

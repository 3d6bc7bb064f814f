"""Engine reports and lists of kernels as files of a bundle.

``report.json`` holds the reports under ``engines``, by set and stage, beside what else a build reports; every report
has its ``shares`` too, which follow from its other figures. ``engines/<set>/<stage>.kernels.json`` is the list of one
engine's kernels.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from export.engine.kernels import Kernel
from export.engine.report import EngineReport
from export.engine.tables import Reports
from runtime.bundle.json_fields import decode, parse
from runtime.errors import SHOWN, cut, shown

REPORT, PAGE = "report.json", "report.html"
_ENGINES, _SHARES = "engines", "shares"
_FORMAT, _VERSION = "ideogram4-kernels", 1


@dataclass(frozen=True)
class _KernelFile:
    format: str
    version: int
    kernels: tuple[Kernel, ...]


def kernels_path(engines: str, stage: str) -> str:
    """Path of an engine's list of kernels in the bundle."""
    return f"engines/{engines}/{stage}.kernels.json"


def kernels_to_json(kernels: Sequence[Kernel]) -> str:
    """Text of an engine's list of kernels."""
    data = asdict(_KernelFile(_FORMAT, _VERSION, tuple(kernels)))
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False) + "\n"


def kernels_from_json(text: str, where: str) -> tuple[Kernel, ...]:
    """Read it again; ValueError says what is wrong with the file, which `where` names."""
    file = _decode(_object(text, where), _KernelFile, where)
    if (file.format, file.version) != (_FORMAT, _VERSION):
        raise ValueError(
            f"{where} is {shown(file.format)} version {file.version}, wanted {_FORMAT!r} version {_VERSION}"
        )
    return file.kernels


def engines_to_dict(reports: Reports) -> dict[str, Any]:
    """What a bundle's ``report.json`` says of its engines: ``{"engines": …}``."""
    return {_ENGINES: {name: {stage: _plain(r) for stage, r in stages.items()} for name, stages in reports.items()}}


def engines_from_json(text: str, where: str) -> dict[str, dict[str, EngineReport]]:
    """The reports of a ``report.json``; {} without any. ValueError says what is wrong with the file."""
    engines = _object(text, where).get(_ENGINES, {})
    if not isinstance(engines, dict) or not all(isinstance(stages, dict) for stages in engines.values()):
        raise ValueError(f"{where}: {_ENGINES} is not an object of objects")
    return {
        name: {
            stage: report_from_dict(value, f"{where}: {cut(name, SHOWN)}: {cut(stage, SHOWN)}")
            for stage, value in stages.items()
        }
        for name, stages in engines.items()
    }


def _plain(report: EngineReport) -> dict[str, Any]:
    shares = {"coded": round(report.coded_share, 4), "attention_coded": round(report.coded_attention_share, 4)}
    return {**asdict(report), _SHARES: shares}


def report_from_dict(value: Any, where: str) -> EngineReport:
    """One engine's report from its JSON value; ValueError says what is wrong with it."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key != _SHARES}
    return _decode(value, EngineReport, where)


def _object(text: str, where: str) -> dict[str, Any]:
    data = parse(text, where)
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not a JSON object")
    return data


def _decode(value: Any, kind: type, where: str) -> Any:
    try:
        return decode(value, kind, "it")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error

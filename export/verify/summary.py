"""A report as plain data, and as rows of text for people."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from export.reporting.text_table import aligned
from export.verify.quality import FLAG_FACTOR, FLAG_FLOOR, PERIODS, PictureError, VectorError, picture_error
from export.verify.replay import STAGES, Measured, Reference
from runtime.bundle.manifest import Manifest
from runtime.plan import Plan
from runtime.sampling.schedule import Sampling

GRAPH_COLUMNS = ("relative error, mean", "worst", "cosine, worst", "largest byte difference", "PSNR in dB")
PICTURE_COLUMNS = ("PSNR in dB", "SSIM", "largest byte difference", "latents, relative error")
NONE = "–"


@dataclass(frozen=True)
class Entry:
    """A bundle of the report."""

    label: str
    """Name of its directory, or the whole path where two bundles share that name."""
    directory: Path
    manifest: Manifest
    measured: Measured

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.manifest.files.values())

    @property
    def quantization(self) -> str:
        """What is in 8 bits, in words."""
        spec = self.manifest.quantization
        if spec is None:
            return "none"
        parts = ["weights"]
        if spec.activations != "none":
            kind = "a scale for each token" if spec.activations == "token" else f"static, {spec.activations}"
            smoothed = "" if spec.smoothing is None else ", smoothed channels"
            parts.append(f"activations ({kind}{smoothed})")
        if spec.attention == "fp8":
            parts.append("attention")
        kept = f", but not {', '.join(spec.keep_base)}" if spec.keep_base else ""
        return " + ".join(parts) + kept


@dataclass(frozen=True)
class Report:
    """Bundles of one checkpoint, next to the checkpoint."""

    checkpoint: str
    device: str
    plans: Sequence[Plan]
    samples: dict[str, list[Reference]]
    """The reference's, by type of time."""
    entries: Sequence[Entry]

    @property
    def time_rounding(self) -> list[PictureError]:
        """What rounding the time alone does to each picture: the references' pictures compared; [] with one of them."""
        references = [[sample.image for sample in samples] for samples in self.samples.values()]
        return [picture_error(other, first) for first, *others in zip(*references, strict=True) for other in others]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None stands for infinity, the PSNR of equal pictures."""
        first = self.plans[0]
        return {
            "checkpoint": self.checkpoint,
            "device": self.device,
            "preset": first.sampling.preset,
            "steps": len(first.steps),
            "guidance": list(first.sampling.guidance),
            "width": first.width,
            "height": first.height,
            "prompts": [{"prompt": p.prompt, "seed": p.seed, "tokens": len(p.token_ids)} for p in self.plans],
            "time_rounding": [_finite(asdict(error)) for error in self.time_rounding],
            "grid_flag": {"factor": FLAG_FACTOR, "floor": FLAG_FLOOR},
            "bundles": [_entry(entry) for entry in self.entries],
        }


def _entry(entry: Entry) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "label": entry.label,
        "directory": str(entry.directory),
        "precision": manifest.precision,
        "compute": {name: graph.compute for name, graph in manifest.graphs.items()},
        "quantization": asdict(manifest.quantization) if manifest.quantization else None,
        "timestep_dtype": manifest.timestep_dtype,
        "bytes": entry.size,
        "graphs": {
            stage: [[_finite(asdict(error)) for error in calls] for calls in plans]
            for stage, plans in entry.measured.graphs.items()
        },
        "pictures": [
            {
                **_finite(asdict(picture.error)),
                "latents": _finite(asdict(picture.latents)),
                "grid": [{**asdict(check), "flagged": check.flagged} for check in picture.grid],
            }
            for picture in entry.measured.pictures
        ],
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value == math.inf else value for key, value in values.items()}


def step_errors(entry: Entry, stage: str) -> list[float]:
    """Relative velocity error of a transformer at each step, the mean over the prompts; [] where it did not run."""
    return [fmean(error.relative for error in step) for step in zip(*entry.measured.graphs.get(stage, []), strict=True)]


def graph_row(entry: Entry, stage: str) -> list[str] | None:
    """A stage's cells for `GRAPH_COLUMNS`, over all prompts and steps; None where it did not run."""
    errors = [error for calls in entry.measured.graphs.get(stage, []) for error in calls]
    if not errors:
        return None
    if isinstance(errors[0], VectorError):
        relative = [error.relative for error in errors]
        cosine = min(error.cosine for error in errors)
        return [scientific(fmean(relative)), scientific(max(relative)), f"{cosine:.7f}", NONE, NONE]
    difference, worst = max(error.max_difference for error in errors), min(error.psnr for error in errors)
    return [NONE, NONE, NONE, str(difference), decibels(worst)]


def picture_row(entry: Entry, index: int) -> list[str]:
    """A picture's cells for `PICTURE_COLUMNS`."""
    picture = entry.measured.pictures[index]
    error = picture.error
    return [decibels(error.psnr), f"{error.ssim:.5f}", str(error.max_difference), scientific(picture.latents.relative)]


def scientific(value: float) -> str:
    """``2.7e-02``; a plain 0 for nothing at all."""
    return f"{value:.1e}" if value else "0"


def decibels(value: float) -> str:
    """``46.9``, or ``equal``."""
    return "equal" if value == math.inf else f"{value:.1f}"


def schedule_name(sampling: Sampling) -> str:
    """The preset's name, if nothing of it was changed."""
    return sampling.preset or "a schedule of its own"


def as_text(report: Report) -> str:
    """The report's figures for a terminal."""
    first = report.plans[0]
    title = (
        f"{report.checkpoint}, {schedule_name(first.sampling)} ({len(first.steps)} steps), "
        f"{first.width}x{first.height}, prompts: {len(report.plans)}, seeds from {first.seed}; "
        "reference: PyTorch in float32"
    )
    graphs = [
        [stage, entry.label, *row] for stage in STAGES for entry in report.entries if (row := graph_row(entry, stage))
    ]
    pictures = [
        [str(index + 1), entry.label, *picture_row(entry, index), *grid_cells(entry, index)]
        for index in range(len(report.plans))
        for entry in report.entries
    ]
    grids = (f"grid {period} (reference)" for period in PERIODS)
    return "\n\n".join(
        (
            title,
            aligned([("graph", "bundle", *GRAPH_COLUMNS), *graphs]),
            aligned([("prompt", "bundle", *PICTURE_COLUMNS, *grids), *pictures]),
            *_rounding(report),
        )
    )


def _rounding(report: Report) -> list[str]:
    errors = ", ".join(decibels(error.psnr) for error in report.time_rounding)
    return (
        [f"PSNR of the reference's pictures with the time rounded against those without: {errors} dB"] if errors else []
    )


def grid_cells(entry: Entry, index: int) -> list[str]:
    """``9.2 (8.7)`` for each period, the reference's ratio in brackets."""
    checks = entry.measured.pictures[index].grid
    return [f"{check.ratio:.1f} ({check.reference:.1f}){' GRID' if check.flagged else ''}" for check in checks]

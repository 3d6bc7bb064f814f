"""A report as one HTML page that needs nothing else: styles, pictures and the plot are inside, and no script is."""

import base64
import math
from collections.abc import Callable
from html import escape

import numpy as np

from export.reporting.page import capital, page, section, table
from export.reporting.plot import Series, line_plot
from export.verify.quality import FLAG_FACTOR, FLAG_FLOOR, PERIODS
from export.verify.replay import STAGES, TRANSFORMERS
from export.verify.summary import (
    GRAPH_COLUMNS,
    PICTURE_COLUMNS,
    Entry,
    Report,
    decibels,
    graph_row,
    picture_row,
    schedule_name,
    step_errors,
)
from runtime.image.output_files import png

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#444444")
"""Told apart by the colour-blind too (Okabe and Ito); used again from the first where there are more bundles."""
_MAX_GAIN = 64
_LONGEST = 240
"""Characters of a prompt that are shown."""


def html_page(report: Report) -> str:
    """The page's text."""
    sections = (_setup(report), _bundles(report), _graphs(report), _plot(report), _pictures(report), _grid(report))
    return page(f"Bundle quality: {report.checkpoint}", sections)


def _setup(report: Report) -> str:
    first, count = report.plans[0], len(report.plans)
    guidance = " then ".join(f"{g:g}" for g in dict.fromkeys(first.sampling.guidance))
    seeds = f"{first.seed}" if count == 1 else f"{first.seed} to {report.plans[-1].seed}"
    facts = {
        "Checkpoint": report.checkpoint,
        "Reference": f"PyTorch, float32, {report.device}",
        "Preset": schedule_name(first.sampling),
        "Steps": f"{len(first.steps)}, guidance {guidance}",
        "Size": f"{first.width} × {first.height} pixels",
        "Prompts": f"{count}",
        "Seeds": seeds,
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{cells}</dl>'


def _bundles(report: Report) -> str:
    rows = [
        [
            _name(report, entry),
            entry.manifest.precision,
            escape(entry.quantization),
            entry.manifest.graphs["dit_cond"].compute,
            entry.manifest.timestep_dtype,
            f"{entry.size / 1e6:,.1f}",
        ]
        for entry in report.entries
    ]
    columns = ("Bundle", "Precision", "In 8 bits", "Everything else", "Time rounded to", "Size in MB")
    return section("Bundles", "", table(columns, rows, words=5))


def _graphs(report: Report) -> str:
    rows = []
    for stage in STAGES:
        present = [(entry, row) for entry in report.entries if (row := graph_row(entry, stage))]
        for position, (entry, row) in enumerate(present):
            heading = [] if position else [f'<th scope="rowgroup" rowspan="{len(present)}"><code>{stage}</code></th>']
            rows.append([*heading, _name(report, entry), entry.manifest.precision, *row])
    note = (
        "Every graph gets the inputs that the reference had: the transformers its text features and its latents of "
        "each step, the VAE decoder its last latents. Errors are therefore those of one pass and do not add up. "
        "The relative error is ‖bundle − reference‖ / ‖reference‖. Both sides get the same time; where a bundle rounds "
        "it to bfloat16, so does its reference. Worst cases are over all prompts and steps."
    )
    columns = ("Graph", "Bundle", "Precision", *map(capital, GRAPH_COLUMNS))
    return section("Graphs at fixed inputs", note, table(columns, rows, words=3))


def _plot(report: Report) -> str:
    series = [
        Series(f"{entry.label}, {stage}", _color(report, entry), stage == "dit_uncond", values)
        for entry in report.entries
        for stage in TRANSFORMERS
        if (values := step_errors(entry, stage))
    ]
    plot = line_plot(series, "step", "relative velocity error")
    note = "At the reference’s latents of each step, mean over the prompts. Step 1 starts from noise."
    return section("Error over the steps", note, f'<div class="scroll">{plot}</div>')


def _pictures(report: Report) -> str:
    gain = _gain(report)
    rows = _by_prompt(report, lambda entry, index: [entry.manifest.precision, *picture_row(entry, index)])
    columns = ("Prompt", "Bundle", "Precision", *map(capital, PICTURE_COLUMNS))
    note = (
        "Each bundle samples by itself from the reference’s start noise, so small errors add up over the steps. "
        f"Below each picture: its absolute difference from the reference, {gain} times amplified; black is equal."
    )
    strips = "".join(_strip(report, index, gain) for index in range(len(report.plans)))
    return section("Pictures", note, table(columns, rows, words=3) + strips)


def _strip(report: Report, index: int, gain: int) -> str:
    """The pictures of one prompt in a row, and their differences below."""
    plan = report.plans[index]
    references = {time: samples[index].image for time, samples in report.samples.items()}
    upper = [_figure(image, "reference", f"time in {time}") for time, image in references.items()]
    first, *others = references.values()
    # The second reference tells what the rounding of the time does by itself.
    lower = ["<div></div>", *(_difference(image, first, ", from the time alone", gain) for image in others)]
    for entry in report.entries:
        image, error = entry.measured.pictures[index].image, entry.measured.pictures[index].error
        upper.append(_figure(image, escape(entry.label), f"PSNR {decibels(error.psnr)}"))
        lower.append(_difference(image, references[entry.manifest.timestep_dtype], "", gain))
    prompt = plan.prompt if len(plan.prompt) <= _LONGEST else plan.prompt[:_LONGEST] + "…"
    return (
        f'<h3>Prompt {index + 1} <span class="muted">seed {plan.seed}</span></h3>'
        f'<p class="prompt">{escape(prompt)}</p>'
        f'<div class="scroll"><div class="strip" style="--columns:{len(upper)}">{"".join(upper + lower)}</div></div>'
    )


def _difference(got: np.ndarray, wanted: np.ndarray, cause: str, gain: int) -> str:
    difference = np.abs(got.astype(int) - wanted)
    amplified = np.minimum(difference * gain, 255).astype(np.uint8)
    return _figure(amplified, f"difference × {gain}", f"at most {difference.max()} of 255{cause}")


def _gain(report: Report) -> int:
    """One gain for all, so that differences can be compared by eye: the largest power of two that hardly clips."""
    largest = 1.0
    for entry in report.entries:
        for picture, sample in zip(entry.measured.pictures, report.samples[entry.manifest.timestep_dtype], strict=True):
            difference = np.abs(picture.image.astype(int) - sample.image)
            largest = max(largest, float(np.percentile(difference, 99.9)))
    return min(_MAX_GAIN, 2 ** int(math.log2(255 / largest)))


def _figure(image: np.ndarray, name: str, detail: str) -> str:
    data = base64.b64encode(png(image, {})).decode("ascii")
    height, width = image.shape[:2]
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{name}, {detail}">'
        f'<figcaption><b>{name}</b><span class="muted">{detail}</span></figcaption></figure>'
    )


def _grid(report: Report) -> str:
    note = (
        "Image tokens are squares of 16 pixels, latent pixels of 8. The figure is the power of the brightness "
        "gradient’s mean profile at that period over the power at the periods around it; up to 10 is chance. A "
        f"bundle is flagged at more than {FLAG_FACTOR:g} times the reference’s figure "
        f"(at least {FLAG_FLOOR:g} is assumed for the reference)."
    )
    periods = [f"{period} px, {who}" for period in PERIODS for who in ("reference", "bundle")]
    columns = ("Prompt", "Bundle", "New grid", *periods)
    return section("Grid check", note, table(columns, _by_prompt(report, _grid_cells), words=3))


def _grid_cells(entry: Entry, index: int) -> list[str]:
    checks = entry.measured.pictures[index].grid
    found = " and ".join(f"{check.period} px" for check in checks if check.flagged)
    verdict = f'<span class="bad">grid of {found}</span>' if found else '<span class="good">none</span>'
    return [verdict, *(f"{value:.1f}" for check in checks for value in (check.reference, check.ratio))]


def _by_prompt(report: Report, cells: Callable[[Entry, int], list[str]]) -> list[list[str]]:
    """Rows for every prompt and bundle; the prompt's number stands in front of its first one."""
    rows = []
    for index in range(len(report.plans)):
        for position, entry in enumerate(report.entries):
            heading = [] if position else [f'<th scope="rowgroup" rowspan="{len(report.entries)}">{index + 1}</th>']
            rows.append([*heading, _name(report, entry), *cells(entry, index)])
    return rows


def _name(report: Report, entry: Entry) -> str:
    return f'<span class="dot" style="background:{_color(report, entry)}"></span>{escape(entry.label)}'


def _color(report: Report, entry: Entry) -> str:
    return _COLORS[[other.label for other in report.entries].index(entry.label) % len(_COLORS)]

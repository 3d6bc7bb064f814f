"""What the GPU benchmark measured, and its table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from export.reporting.text_table import aligned

STAGES = ("text_encoder", "dit_cond", "dit_uncond", "vae_decoder")


@dataclass(frozen=True)
class Run:
    """A kind of picture: steps and guidance under a name."""

    name: str
    guidance: tuple[float, ...]
    """One weight for each step."""
    mu: float
    std: float


@dataclass
class Measured:
    """One side's figures."""

    where: str
    """What ran on what, in words."""
    tokens: int = 0
    """Of the prompt, as far as the side knows them."""
    stages: dict[str, list[float]] = field(default_factory=lambda: {stage: [] for stage in STAGES})
    """Milliseconds of each call, with the copies that belong to it; of the warm pictures."""
    pictures: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of each warm picture, by the run's name."""
    peak_bytes: int = 0
    """Device memory over what was in use before the side loaded anything; weights, activations, everything."""
    load_seconds: float = 0.0


def table(ours: Measured, peer: Measured | None, psnr: float | None = None) -> str:
    """The figures side by side as aligned text; a ratio above 1 is in our favour."""
    rows = [("", "ours", "diffusers", "ratio")]
    for stage in STAGES:
        rows.append(_row(f"{stage}, ms a call", ours.stages[stage], peer.stages[stage] if peer else (), "{:.2f}"))
    for name, seconds in ours.pictures.items():
        rows.append(_row(f"{name}, s a picture", seconds, peer.pictures.get(name, ()) if peer else (), "{:.3f}"))
    peaks = [peer.peak_bytes / 1e9] if peer else ()
    rows.append(_row("peak device memory, GB", [ours.peak_bytes / 1e9], peaks, "{:.2f}"))
    rows.append(_row("loading, s", [ours.load_seconds], [peer.load_seconds] if peer else (), "{:.1f}"))
    if psnr is not None:
        rows.append(("PSNR of the two pictures, dB", f"{psnr:.1f}", "", ""))
    lines = aligned(rows, words=len(rows[0]))
    return "\n".join([lines, "", f"ours: {ours.where}", *([f"diffusers: {peer.where}"] if peer else [])])


def _row(name: str, ours: Sequence[float], peer: Sequence[float], form: str) -> tuple[str, str, str, str]:
    """Medians, and peer over ours."""
    a, b = (median(values) if values else None for values in (ours, peer))
    ratio = f"{b / a:.2f}" if a and b else ""
    return name, "-" if a is None else form.format(a), "-" if b is None else form.format(b), ratio

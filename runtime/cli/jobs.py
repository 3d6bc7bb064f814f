"""What the command is asked for: one job for the command line, or one for each line of a prompt file."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from runtime.bundle.manifest import Manifest
from runtime.cli.image_options import passes_of
from runtime.image.init_image import check_values, make_source
from runtime.image.png import numbered
from runtime.plan import MAX_IMAGES, Plan, make_plan
from runtime.prompt.tokens import PromptEncoder
from runtime.sampling.guidance import EVERY_STEP, UnconditionalPasses
from runtime.sampling.schedule import parse_guidance


@dataclass(frozen=True)
class Job:
    """A prompt, the options for it, and where its pictures go. None stands for the bundle's default."""

    prompt: str
    output: Path
    """PNG to write; several get -0, -1, … before the suffix."""
    where: str = ""
    """File and line that asked for it, such as ``prompts.txt:3``; empty for the command line."""
    layout: Path | None = None
    """PNG to draw the caption's boxes in."""
    width: int | None = None
    height: int | None = None
    preset: str | None = None
    steps: int | None = None
    guidance: float | tuple[float, ...] | None = None
    mu: float | None = None
    std: float | None = None
    seed: int | None = None
    num_images: int = 1
    unconditional: str = "graph"
    passes: UnconditionalPasses = EVERY_STEP
    vae_tile: str | int = "auto"
    image: Path | None = None
    """The picture to start from; see `runtime.image.init_image.Source` for this and the four below."""
    strength: float | None = None
    fit: str | None = None
    mask: Path | None = None
    mask_feather: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_images <= MAX_IMAGES:
            raise ValueError(f"num_images is {self.num_images}, wanted 1 to {MAX_IMAGES}")
        check_values(self.strength, self.fit, self.mask_feather)

    @property
    def files(self) -> list[Path]:
        """One for each picture."""
        return numbered(self.output, self.num_images)

    @property
    def written(self) -> list[Path]:
        """All files that the job writes."""
        return self.files if self.layout is None else [*self.files, self.layout]

    def plan(self, manifest: Manifest, encoder: PromptEncoder) -> Plan:
        """Fill in the bundle's defaults; raises as `make_source` and `make_plan` do."""
        return make_plan(
            manifest,
            encoder,
            self.prompt,
            width=self.width,
            height=self.height,
            preset=self.preset,
            steps=self.steps,
            guidance=self.guidance,
            mu=self.mu,
            std=self.std,
            seed=self.seed,
            num_images=self.num_images,
            unconditional=self.unconditional,
            passes=self.passes,
            vae_tile=self.vae_tile,
            source=make_source(self.image, self.strength, self.fit, self.mask, self.mask_feather),
        )


def job_from_options(args: argparse.Namespace, prompt: str) -> Job:
    """The job that the command line asks for; ValueError when an option is out of its range.

    A job of a prompt file starts from it too: the command line's options are the defaults for every line. So what
    options mean together, such as a mask without a picture, is checked when the plan is made.
    """
    guidance = args.guidance if args.guidance_schedule is None else parse_guidance(args.guidance_schedule)
    return Job(
        prompt,
        args.output,
        layout=args.layout,
        width=args.width,
        height=args.height,
        preset=args.preset,
        steps=args.steps,
        guidance=guidance,
        mu=args.mu,
        std=args.std,
        seed=args.seed,
        num_images=args.num_images,
        unconditional=args.unconditional,
        passes=passes_of(args),
        vae_tile=args.vae_tile,
        image=args.image,
        strength=args.strength,
        fit=args.fit,
        mask=args.mask,
        mask_feather=args.mask_feather,
    )

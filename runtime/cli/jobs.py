"""What the command is asked for: one job for the command line, or one for each line of a prompt file."""

from dataclasses import dataclass
from pathlib import Path

from runtime.bundle.manifest import Manifest
from runtime.image.output_files import numbered
from runtime.plan import Plan, make_plan
from runtime.prompt.caption import Caption
from runtime.prompt.tokens import PromptEncoder
from runtime.request import Request


@dataclass(frozen=True)
class Job:
    """A request, and where its pictures go.

    The job of the command line is also where those of a prompt file start from: its options are the defaults for every
    line. So what fields mean together, such as a mask without an image, is checked when the plan is made.
    """

    request: Request
    output: Path
    """Picture to write; several get -0, -1, … before the suffix."""
    where: str = ""
    """File and line that asked for it, such as ``prompts.txt:3``; empty for the command line."""
    layout: Path | None = None
    """Picture to draw the caption's boxes in."""
    caption: Caption | None = None
    """The caption that the prompt is, where it was read as one."""

    @property
    def files(self) -> list[Path]:
        """One for each picture."""
        return numbered(self.output, self.request.num_images)

    @property
    def written(self) -> list[Path]:
        """All files that the job writes."""
        return self.files if self.layout is None else [*self.files, self.layout]

    def plan(self, manifest: Manifest, encoder: PromptEncoder) -> Plan:
        """Fill in the bundle's defaults; raises as `make_plan` does."""
        return make_plan(manifest, encoder, self.request)

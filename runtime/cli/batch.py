"""Jobs one after the other: all are checked first, each is written when it is done, and one that fails is noted."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.atomic_files import check_outputs, remove_leftovers, write_files
from runtime.bundle.manifest import Manifest
from runtime.cli.finished import finished_files
from runtime.cli.jobs import Job
from runtime.console import USER_ERRORS, describe
from runtime.errors import RequestError
from runtime.generated import Generated
from runtime.image.output_files import check_settings, check_suffix, encode
from runtime.layout.drawing import write_layout
from runtime.pipeline import OnStep, Pipeline
from runtime.plan import Plan
from runtime.prompt.caption import Caption, looks_like_json
from runtime.prompt.tokens import PromptEncoder

Warn = Callable[[str, str], None]
"""Called with the line of a prompt file, or nothing, and a warning about it."""
_LISTED = 20


@dataclass(frozen=True)
class Task:
    """A job that has been checked."""

    job: Job
    plan: Plan
    overwrite: bool
    """Whether its files may be replaced."""
    finished: bool
    """Whether its pictures are there already."""
    caption: Caption | None
    """What its layout draws; None without a layout."""


class Failures:
    """The lines of a prompt file that could not be done. An error of the command line itself is raised at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` is called with each failure, which names its line."""
        self.say, self.places = say, list[str]()

    @contextlib.contextmanager
    def noted(self, where: str) -> Iterator[None]:
        """Note an error in the block as one of the line `where`."""
        try:
            yield
        except USER_ERRORS as error:
            if not where:
                raise
            self.say(f"{where}: {describe(error)}")
            self.places.append(where)

    def stop(self, count: int) -> None:
        """Raise RuntimeError that says which of `count` prompts failed, if any did."""
        if self.places:
            more = f" and {len(self.places) - _LISTED} more" if len(self.places) > _LISTED else ""
            places = sorted(self.places, key=lambda place: int(place.rpartition(":")[2]))
            which = ", ".join(places[:_LISTED])
            raise RuntimeError(f"{len(self.places)} of {count} prompts failed: {which}{more}")


def check_files(jobs: Sequence[Job], overwrite: bool, failures: Failures) -> list[Job]:
    """The jobs whose files can be written, and are no other job's; what a killed run has left of them is removed.

    Files of a prompt file's jobs may exist: whether they are finished is seen when the settings are known.
    """
    owners: dict[Path, str] = {}
    fit = []
    for job in jobs:
        with failures.noted(job.where):
            for file in job.written:
                if (owner := owners.setdefault(file.resolve(), job.where)) != job.where or job.written.count(file) > 1:
                    raise RequestError(f"the output {file} is already that of {owner or 'another option'}")
            check_outputs(job.files, overwrite or bool(job.where))
            if job.layout:
                check_outputs([job.layout], overwrite=True)
            for file in job.written:
                check_suffix(file)
            fit.append(job)
    remove_leftovers([file for job in fit for file in job.written])
    return fit


def make_tasks(
    jobs: Sequence[Job], manifest: Manifest, encoder: PromptEncoder, overwrite: bool, failures: Failures
) -> list[Task]:
    """Check the jobs against the bundle and against the files that are there."""
    tasks = []
    for job in jobs:
        with failures.noted(job.where):
            plan = job.plan(manifest, encoder)
            caption = caption_of(job) if job.layout else None
            settings = settings_of(job, plan, manifest)
            check_settings(job.output, settings)
            finished = finished_files(job.files, settings, overwrite) if job.where else []
            tasks.append(Task(job, plan, overwrite or bool(finished), len(finished) == len(job.files), caption))
    return tasks


def draw_layouts(
    tasks: Sequence[Task], font: Path | None, overwrite: bool, failures: Failures, warn: Warn
) -> list[Task]:
    """Draw the layouts that are asked for; returns the tasks that go on."""
    drawn = []
    for task in tasks:
        with failures.noted(task.job.where):
            if task.job.layout and task.caption:
                size = task.plan.width, task.plan.height
                missing = write_layout(task.job.layout, task.caption, size, font, overwrite)
                if missing:
                    warn(task.job.where, f"the layout's font lacks {missing}; --layout-font takes another")
            drawn.append(task)
    return drawn


def caption_of(job: Job) -> Caption:
    """The caption that a job's layout draws; RequestError when its prompt is none."""
    if job.caption is not None:
        return job.caption
    if not looks_like_json(job.request.prompt):
        raise RequestError("a layout needs a caption, and the prompt is plain text; --wrap makes a caption of it")
    return Caption.parse(job.request.prompt)  # unchecked, or not in order


def settings_of(job: Job, plan: Plan, manifest: Manifest) -> dict[str, object]:
    """What the pictures of a job have in their settings, as JSON has it. Any seed will do when the job names none."""
    settings: dict[str, object] = json.loads(json.dumps(plan.to_dict()))
    if job.request.seed is None:
        del settings["seed"]
    return settings | manifest.identity


def make(pipeline: Pipeline, task: Task, on_step: OnStep) -> Generated:
    """Make the pictures of a task and write them, whole or not at all."""
    files = task.job.files
    check_outputs(files, task.overwrite)
    result = pipeline.run(task.plan, on_step=on_step)
    settings = [result.used | {"index": index} for index in range(len(files))]
    contents = [encode(*made) for made in zip(result.images, settings, files, strict=True)]
    write_files(files, contents, task.overwrite)
    return result

"""The command ``trt-generate``: prompts in, picture files out."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from runtime.backend.placement import parse_devices
from runtime.bundle.manifest import read_manifest
from runtime.cli.batch import Failures, Task, Warn, check_files, draw_layouts, make, make_tasks
from runtime.cli.jobs import Job
from runtime.cli.options import DEFAULT_OUTPUT, PROGRAM, build_parser
from runtime.cli.preview_file import check_preview, preview_of
from runtime.cli.prompt_file import job_of_line, jsonl_folder, read_lines
from runtime.cli.reporting import Report
from runtime.cli.request_options import given_fields
from runtime.cli.self_test import self_test
from runtime.console import guard
from runtime.constants import BUNDLE_VARIABLE, DEFAULT_BUNDLE
from runtime.errors import RequestError
from runtime.layout.fonts import choose_face
from runtime.pipeline import OnStep, Pipeline
from runtime.progress import Progress
from runtime.prompt.reading import PromptReader, ReadPrompt, read_text
from runtime.prompt.tokens import PromptEncoder
from runtime.request import Request


def generate(args: argparse.Namespace) -> None:
    """Do what the options say. Everything that can be wrong with them is found before a graph is loaded."""
    directory = args.bundle or Path(os.environ.get(BUNDLE_VARIABLE) or DEFAULT_BUNDLE)
    if args.self_test:
        self_test(args, directory)
        return
    report = Report(args.quiet, args.json)
    failures = Failures(report.say)
    if args.layout_font:
        choose_face("", args.layout_font)
    jobs, count = read_jobs(args, failures, report.warn)
    jobs = check_files(jobs, args.overwrite, failures)
    manifest = read_manifest(directory)
    encoder = PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt)
    devices = None if args.devices is None else parse_devices(args.devices)
    tasks = make_tasks(jobs, manifest, encoder, args.overwrite, failures)
    check_preview(args, manifest, [file for job in jobs for file in job.written])
    if args.strict:
        failures.stop(count)
    tasks = draw_layouts(tasks, args.layout_font, args.overwrite, failures, report.warn)
    if args.strict:
        failures.stop(count)
    left = [task for task in tasks if not task.finished]
    report.finished(len(tasks) - len(left), len(tasks))
    if args.dry_run:
        for task in left:
            report.planned(task)
    elif left:
        _make_all(left, directory, args, devices, failures, report)
    failures.stop(count)
    report.end()


def read_jobs(args: argparse.Namespace, failures: Failures, warn: Warn) -> tuple[list[Job], int]:
    """The jobs that are asked for, and how many there were with those that cannot be read."""
    reader = PromptReader(args.check_caption, args.wrap, partial(warn, ""))
    if args.caption is not None:
        if args.wrap:
            raise RequestError("--wrap is for plain text, and --caption is a caption already")
        return [job_from_options(args, _caption(args.caption, reader))], 1
    if args.prompt is not None:
        return [job_from_options(args, reader.prompt(args.prompt))], 1
    defaults, jobs, count = job_from_options(args, ReadPrompt("")), [], 0
    if args.output.is_dir():
        defaults = replace(defaults, output=args.output / DEFAULT_OUTPUT)
    folder = jsonl_folder(args.prompt_file)
    for where, number, line in read_lines(args.prompt_file):
        count += 1
        reader = replace(reader, warn=partial(warn, where))
        with failures.noted(where):
            jobs.append(job_of_line(where, number, line, folder, defaults, reader))
    return jobs, count


def _caption(file: str, reader: PromptReader) -> ReadPrompt:
    text = read_text(file)
    try:
        return reader.caption_text(text)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from error


def job_from_options(args: argparse.Namespace, prompt: ReadPrompt) -> Job:
    """The job that the command line asks for; RequestError when an option is out of range."""
    request = Request(prompt.text, **given_fields(args))
    return Job(request, args.output, layout=args.layout, caption=prompt.caption)


def _make_all(
    tasks: Sequence[Task],
    directory: Path,
    args: argparse.Namespace,
    devices: tuple[str, str] | None,
    failures: Failures,
    report: Report,
) -> None:
    with Pipeline.load(
        directory,
        backend=args.backend,
        device=args.device,
        memory=args.memory,
        threads=args.threads,
        verify=args.verify,
        unconditional=any(task.plan.needs_unconditional_graph for task in tasks),
        devices=devices,
        negative=any(task.plan.negative_token_ids for task in tasks),
        vae_graphs=tuple(dict.fromkeys(name for task in tasks for name in task.plan.vae_graphs)),
        # Of several, one that engines cannot make must not stop the others: it fails in its turn.
        plans=[task.plan for task in tasks] if len(tasks) == 1 else (),
    ) as pipeline:
        manifest = pipeline.manifest
        report.started(f"{manifest.name} {manifest.precision} on {pipeline.where}")
        total = sum(len(task.plan.steps) for task in tasks)
        with Progress("denoising", total, "step", quiet=args.quiet, leave=False) as bar:
            _make_each(pipeline, tasks, args, failures, report, bar)


def _make_each(
    pipeline: Pipeline,
    tasks: Sequence[Task],
    args: argparse.Namespace,
    failures: Failures,
    report: Report,
    bar: Progress,
) -> None:
    done = written = 0
    try:
        for number, task in enumerate(tasks, start=1):
            if len(tasks) > 1:
                bar.set_description(f"prompt {number} of {len(tasks)}")
            with failures.noted(task.job.where):
                preview = preview_of(args, pipeline.manifest, task.plan, partial(report.warn, task.job.where))
                made = make(pipeline, task, partial(_show, bar, preview))
                written += 1
                report.made(task, made)
            done += len(task.plan.steps)
            bar.update(done - bar.n)  # what a failed one left out
            if failures.places and args.strict:
                break
    except KeyboardInterrupt:
        if tasks[0].job.where:
            report.say(f"{written} of {len(tasks)} prompts are done; the same command makes the others")
        raise


def _show(bar: Progress, preview: OnStep | None, done: int, total: int, latents: np.ndarray) -> None:
    """Move the bar and write the preview after a step."""
    bar.update()
    if preview is not None:
        preview(done, total, latents)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return guard(PROGRAM, lambda: generate(args))

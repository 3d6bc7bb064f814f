"""The self-test of a bundle on this machine: graphs, host and two whole pictures."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.bundle.manifest import Manifest, read_manifest
from runtime.console import describe
from runtime.errors import BackendError, BundleError, Ideogram4Error
from runtime.loading import graphs_to_load, open_bundle
from runtime.pipeline import Pipeline
from runtime.prompt.tokens import PromptEncoder
from runtime.selftest.contents import SelfTest, read_self_test
from runtime.selftest.graphs import compare_all
from runtime.selftest.host import small_plan
from runtime.selftest.rows import Row


@dataclass(frozen=True)
class Outcome:
    """What a self-test found."""

    where: str
    """Backend and device, and why them; empty if nothing could be loaded."""
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return not any(row.problem for row in self.rows)


@dataclass(frozen=True)
class Choices:
    """What runs the graphs, as for `Pipeline.load`."""

    backend: str = "auto"
    device: str = "auto"
    memory: str = "auto"
    threads: int | None = None
    verify: str = "auto"
    max_memory: int | None = None


def run_self_test(directory: Path, choices: Choices) -> Outcome:
    """Load a bundle and compare all that it gives with what its checkpoint gave.

    A bundle that cannot be loaded is a row that failed; its message names the graph.

    Raises:
        MissingFileError: there is no bundle, or no self-test in it.
        BundleError: the manifest, the tokenizer or the self-test is damaged.
        RequestError: a choice is none of those offered.
    """
    manifest, test = read_manifest(directory), read_self_test(directory)
    encoder = PromptEncoder(directory / manifest.prompt.tokenizer, manifest.prompt)
    try:
        pipeline = _load(directory, manifest, encoder, choices)
    except (BackendError, BundleError, MemoryError, OSError) as error:
        return Outcome("", (Row("loading", describe(error)),))
    with pipeline:
        where, engines = pipeline.where, pipeline.engines is not None
        rows = compare_all(pipeline, test)
        pictures: list[np.ndarray] = []
        rows.append(_picture_row("same picture twice", lambda: _two_pictures(pipeline, test, pictures)))
    if engines and pictures:
        row = _picture_row(
            "without CUDA graphs", lambda: _launched_singly(directory, manifest, encoder, choices, test, pictures)
        )
        rows.append(row)
    return Outcome(where, tuple(rows))


def _load(
    directory: Path, manifest: Manifest, encoder: PromptEncoder, choices: Choices, cuda_graphs: bool = True
) -> Pipeline:
    wanted = graphs_to_load(directory, manifest, None, unconditional=True, negative=False)
    opened = open_bundle(
        directory,
        manifest,
        wanted,
        choices.backend,
        choices.device,
        choices.memory,
        choices.threads,
        choices.verify,
        plans=(),
        devices=None,
        most=choices.max_memory,
        cuda_graphs=cuda_graphs,
    )
    return Pipeline(manifest, opened.graphs, encoder, opened.choice.backend, opened.choice.device, opened)


def _picture_row(name: str, compare: Callable[[], int]) -> Row:
    """A row for pictures that must be the same; `compare` counts the bytes that are not."""
    started = time.perf_counter()
    try:
        different = compare()
    except (Ideogram4Error, MemoryError) as error:
        return Row(name, describe(error), seconds=time.perf_counter() - started)
    problem = f"{different} bytes of the picture differ" if different else ""
    return Row(name, problem, seconds=time.perf_counter() - started)


def _two_pictures(pipeline: Pipeline, test: SelfTest, pictures: list[np.ndarray]) -> int:
    for _ in range(2):
        pictures.append(_picture(pipeline, test))
    return int((pictures[0] != pictures[1]).sum())


def _launched_singly(
    directory: Path,
    manifest: Manifest,
    encoder: PromptEncoder,
    choices: Choices,
    test: SelfTest,
    pictures: list[np.ndarray],
) -> int:
    with _load(directory, manifest, encoder, choices, cuda_graphs=False) as pipeline:
        return int((_picture(pipeline, test) != pictures[0]).sum())


def _picture(pipeline: Pipeline, test: SelfTest) -> np.ndarray:
    pipeline.features.clear()  # the text encoder runs each time
    return pipeline.run(small_plan(pipeline.manifest, pipeline.prompt, test.picture)).images

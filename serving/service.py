"""A loaded pipeline that answers requests, and takes itself out of service when it can no longer make a picture."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from runtime.bundle.manifest import Manifest, read_manifest
from runtime.constants import TILE_GRAPHS
from runtime.errors import NonFiniteError
from runtime.image.tiling import AUTO_PIXELS
from runtime.pipeline import Pipeline
from runtime.plan import make_plan
from runtime.selftest.contents import read_self_test
from runtime.selftest.graphs import compare_all, raise_for
from runtime.selftest.rows import failed
from runtime.selftest.table import table_text
from serving.batching import Cancelled, Outcome, Progress, Row, make_pictures, run
from serving.requests import Ask
from serving.settings import Limits, Settings

logger = logging.getLogger(__name__)


def vae_graphs(manifest: Manifest, inputs: Collection[str]) -> list[str]:
    """The VAE's graphs that requests with these inputs can need, of those that the bundle has.

    Tiles are needed where they can be asked for, or where a picture can be so large that they are taken anyway.
    """
    largest = manifest.sizes.maximum if {"width", "height", "image"} & set(inputs) else manifest.sizes.default
    graphs = ["vae_decoder", *(["vae_encoder"] if "image" in inputs else [])]
    if "vae_tile" in inputs or largest > AUTO_PIXELS:
        graphs += [TILE_GRAPHS[name] for name in graphs]
    return [name for name in graphs if name in manifest.stages or name == "vae_decoder"]


OVERFLOWS = 3
"""Requests in a row that give NaN or infinity before the pipeline itself is suspected."""


class EngineFailedError(RuntimeError):
    """The pipeline no longer works; only loading the model again can help."""


class Engine:
    """A pipeline, and whether it still works.

    A request can fail by itself (too large a picture for the memory, values that overflow) and leave the pipeline
    whole. It can also be the first to meet a broken one: after a CUDA error every further call of the process fails.
    Another picture tells the two apart. Values that overflow are first taken for the request's own fault, and looked
    into when they come several times in a row.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits) -> None:
        self.pipeline, self.limits = pipeline, limits
        self.failure: EngineFailedError | None = None
        self.overflows = 0
        """Requests since the last good one that gave NaN or infinity."""

    @classmethod
    def load(cls, settings: Settings) -> "Engine":
        """Load a pipeline and make a picture, so that one that cannot is never ready.

        Triton's own warm-up comes later and is no place to find that out: Triton 2.51 often crashes when it fails.

        Raises:
            ValueError, OSError, RuntimeError: as `runtime.pipeline.Pipeline.load` and `run` say, and
                `runtime.selftest.graphs.SelfTestError` where the settings ask for the self-test and it failed.
        """
        pipeline = Pipeline.load(
            settings.bundle,
            backend=settings.backend,
            device=settings.device,
            threads=settings.threads,
            verify=settings.verify,
            vae_graphs=vae_graphs(read_manifest(settings.bundle), settings.inputs),
            max_memory=settings.memory,
        )
        if settings.self_test:
            _run_self_test(pipeline, settings.bundle)
        engine = cls(pipeline, settings.limits)
        engine.make_plain_picture()
        return engine

    def answer(self, asks: Sequence[Ask]) -> list[Outcome]:
        """The pictures of each of `asks`, or why there are none; see `serving.batching.make_pictures`.

        `EngineFailedError` is the answer to all that a broken pipeline could not do, now and from now on.
        """
        if self.failure:
            return [self.failure] * len(asks)
        return [self._judged(outcome) for outcome in make_pictures(self.pipeline, asks, self.limits.together)]

    def answer_in_steps(self, ask: Ask, progress: Progress) -> Outcome:
        """The same for one request of one row, with `progress` called after each step."""
        if self.failure:
            return self.failure
        try:
            outcome: Outcome = run(self.pipeline, [Row(ask, plan) for plan in ask.plans], progress)[0]
        except Exception as error:  # whatever a stage raises is this request's answer
            outcome = error
        return self._judged(outcome)

    def _judged(self, outcome: Outcome) -> Outcome:
        """What to answer: `outcome`, or that the pipeline no longer works, after a look at it."""
        if not isinstance(outcome, Exception):
            self.overflows = 0
            return outcome
        if isinstance(outcome, (Cancelled, ValueError)):  # the graphs are not to blame
            return outcome
        if isinstance(outcome, NonFiniteError):
            self.overflows += 1
            if self.overflows < OVERFLOWS:
                return outcome
            self.overflows = 0
        if self.failure is None:
            try:
                # A broken context shows in the first call; what overflows may do so in a later step.
                self.make_plain_picture(whole=isinstance(outcome, NonFiniteError))
            except Exception as failed:  # whatever it is, there is no picture
                self.failure = EngineFailedError(f"the engine failed: {outcome}; since then: {failed}")
                logger.error("%s", self.failure)
        return self.failure or outcome

    def make_plain_picture(self, whole: bool = False) -> None:
        """One step at the default size through every graph; it has worked when the pipeline was loaded.

        `whole`: in all steps of the bundle's default preset.
        """
        manifest = self.pipeline.manifest
        unconditional = "graph" if "dit_uncond" in self.pipeline.graphs else "off"
        steps = None if whole else 1
        plan = make_plan(manifest, self.pipeline.prompt, "a", steps=steps, seed=0, unconditional=unconditional)
        self.pipeline.run(plan)


def _run_self_test(pipeline: Pipeline, bundle: Path) -> None:
    """Compare the loaded graphs with the checkpoint's, and log the table; a pipeline that fails is closed."""
    try:
        rows = compare_all(pipeline, read_self_test(bundle))
        logger.log(logging.ERROR if failed(rows) else logging.INFO, "self-test of %s\n%s", bundle, table_text(rows))
        raise_for(rows)
    except BaseException:
        pipeline.close()
        raise

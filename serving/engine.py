"""A loaded pipeline that answers requests, and takes itself out of service when it can no longer make a picture."""

import logging
from collections.abc import Sequence

from runtime.denoise import NonFiniteError
from runtime.pipeline import Pipeline
from runtime.plan import make_plan
from serving.asking import Ask
from serving.settings import Settings
from serving.work import Cancelled, Outcome, Progress, Row, make_pictures, run

logger = logging.getLogger(__name__)


class EngineFailedError(RuntimeError):
    """The pipeline no longer works; only loading the model again can help."""


class Engine:
    """A pipeline, and whether it still works.

    A request can fail by itself (too large a picture for the memory, values that overflow) and leave the pipeline
    whole. It can also be the first to meet a broken one: after a CUDA error every further call of the process fails.
    Another picture tells the two apart.
    """

    def __init__(self, pipeline: Pipeline, limit: int) -> None:
        """`limit`: pictures that run together, at most."""
        self.pipeline, self.limit = pipeline, limit
        self.failure: EngineFailedError | None = None
        self.worked = False
        """Whether it has made a picture. The warm-up comes before that; its errors keep the model from loading."""

    @classmethod
    def load(cls, settings: Settings) -> "Engine":
        """Raises as `runtime.pipeline.Pipeline.load` does."""
        pipeline = Pipeline.load(
            settings.bundle, backend=settings.backend, device=settings.device, threads=settings.threads,
            verify=settings.verify,
        )  # fmt: skip
        return cls(pipeline, settings.limit)

    def answer(self, asks: Sequence[Ask]) -> list[Outcome]:
        """The pictures of each of `asks`, or why there are none; see `serving.work.make_pictures`.

        `EngineFailedError` is the answer to all that a broken pipeline could not do, now and from now on.
        """
        if self.failure:
            return [self.failure] * len(asks)
        return [self._judged(outcome) for outcome in make_pictures(self.pipeline, asks, self.limit)]

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
            self.worked = True
            return outcome
        # Where the graphs are not to blame, or did run, there is nothing to look at.
        if isinstance(outcome, (Cancelled, ValueError, NonFiniteError)) or not self.worked:
            return outcome
        if self.failure is None:
            try:
                self._make_plain_picture()
            except Exception as failed:  # whatever it is, there is no picture
                self.failure = EngineFailedError(f"the engine failed: {outcome}; since then: {failed}")
                logger.error("%s", self.failure)
        return self.failure or outcome

    def _make_plain_picture(self) -> None:
        """One step at the default size through every graph: the same as the warm-up, so it has worked before."""
        manifest = self.pipeline.manifest
        unconditional = "graph" if "dit_uncond" in self.pipeline.graphs else "off"
        plan = make_plan(manifest, self.pipeline.prompt, "a", steps=1, seed=0, unconditional=unconditional)
        self.pipeline.run(plan)

"""The decoupled model: progress after each step, then the pictures. A model repository holds this file as
``1/model.py`` of the ``_stream`` model.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# The code beside this file wins over the server's working directory and over installed packages.
sys.path.insert(0, str(Path(__file__).parent))

from serving import wire
from serving.requests import Ask
from serving.service import Engine
from serving.settings import read_settings
from serving.shared_memory import Room
from serving.tensors import STEP, STEPS


class TritonPythonModel:
    """Named and called by Triton's Python backend; one object in one process for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the pipeline; what is raised here makes the model UNAVAILABLE, with the error as the reason."""
        self.name, self.settings = args["model_name"], read_settings(args)
        self.engine = Engine.load(self.settings)
        self.counts = wire.Counts(self.name)
        self.room = Room()

    def execute(self, requests: list[Any]) -> None:
        """Answer the requests one after another; the responses go through each request's own sender."""
        for request in requests:
            self._answer(request)

    def _answer(self, request: Any) -> None:
        sender, ask = request.get_response_sender(), wire.read(self.engine, request)
        working = self.engine.failure is None
        outcome = self.engine.answer_in_steps(ask, partial(_report, sender)) if isinstance(ask, Ask) else ask
        if working and self.engine.failure and self.settings.unload:
            # Before the last response: behind it the server may begin to unload while this process still asks for it.
            wire.withdraw(self.name)
        last = {} if isinstance(ask, Exception) else _progress(len(ask.plans[0].steps), len(ask.plans[0].steps))
        self.counts.add(wire.answer(request, outcome, self.room, last))

    def finalize(self) -> None:
        """Free what the pipeline holds on its device."""
        self.engine.pipeline.close()

    def is_ready(self) -> bool:
        """Asked by the readiness endpoint of Triton 26.04 and newer."""
        return self.engine.failure is None


def _report(sender: Any, done: int, total: int, latents: np.ndarray) -> None:
    sender.send(wire.arrays_response(_progress(done, total)))


def _progress(done: int, total: int) -> dict[str, np.ndarray]:
    return {STEP: np.array([[done]], np.int32), STEPS: np.array([[total]], np.int32)}

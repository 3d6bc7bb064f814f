"""The model that answers a request with its pictures. A model repository holds this file as ``1/model.py``."""

import sys
from pathlib import Path
from typing import Any

# The code beside this file wins over the server's working directory and over installed packages.
sys.path.insert(0, str(Path(__file__).parent))

from serving import wire
from serving.requests import Ask
from serving.service import Engine
from serving.settings import read_settings
from serving.shared_memory import Room


class TritonPythonModel:
    """Named and called by Triton's Python backend; one object in one process for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the pipeline; what is raised here makes the model UNAVAILABLE, with the error as the reason."""
        self.name, self.settings = args["model_name"], read_settings(args)
        self.engine = Engine.load(self.settings)
        self.counts = wire.Counts(self.name)
        self.room = Room()

    def execute(self, requests: list[Any]) -> None:
        """Send one response for each request, errors included; nothing is raised, it would fail the whole batch.

        Responses that are returned instead share one piece of shared memory: where it cannot grow that far, Triton
        2.51 answers none of the batch, ever.
        """
        asks = [wire.read(self.engine, request) for request in requests]
        working = self.engine.failure is None
        made = iter(self.engine.answer([ask for ask in asks if isinstance(ask, Ask)]))
        outcomes = [next(made) if isinstance(ask, Ask) else ask for ask in asks]
        if working and self.engine.failure and self.settings.unload:
            wire.withdraw(self.name)
        for request, outcome in zip(requests, outcomes, strict=True):
            self.counts.add(wire.answer(request, outcome, self.room))

    def finalize(self) -> None:
        """Free what the pipeline holds on its device."""
        self.engine.pipeline.close()

    def is_ready(self) -> bool:
        """Asked by the readiness endpoint of Triton 26.04 and newer."""
        return self.engine.failure is None

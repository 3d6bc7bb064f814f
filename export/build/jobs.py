"""The work of a build: one job for each stage and backend."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.atomic_directory import file_spec
from export.build.finished.keys import key_of
from export.build.finished.ledger import GRAPHS, Finished
from export.engine.plan import EngineOptions, build_engine
from export.graph.records import configuration, graph_record, graphs_of, stage_of
from export.graph.stage import StageOptions, export_stage
from model.checkpoint.directory import Checkpoint
from runtime.bundle.graph_specs import EngineSpec, GraphSpec
from runtime.bundle.manifest import FileSpec

_FIRST = ("dit_cond", "dit_uncond")
"""Engines of these are built first: joined weights then lie where the others' plans will be."""


@dataclass(frozen=True, eq=False)
class Job:
    """One graph for one backend."""

    stage: str
    """Name of the graph: a stage of the checkpoint, or one for tiles on its weights."""
    options: StageOptions
    engine: EngineOptions | None = None
    """None for ONNX Runtime."""

    @property
    def name(self) -> str:
        return f"{self.engine.name if self.engine else GRAPHS}/{self.stage}"

    def key(self, checkpoint: Checkpoint) -> str:
        """Of everything that the stage is made from; files count by name, size and time of change."""
        options, engine = self._touching(checkpoint)
        return key_of(
            {
                "stage": self.stage,
                "options": options,
                "engine": engine,
                "engine version": engine and engine.version,
                "configuration": configuration(self.stage, checkpoint),
                "weights": checkpoint.identity(stage_of(self.stage)),
            }
        )

    def run(self, checkpoint: Checkpoint, folder: Path, quiet: bool) -> tuple[Finished, dict[str, Path]]:
        """Make the stage's files in `folder`; also the paths that are second names of checkpoint files."""
        key = self.key(checkpoint)  # of the files as they are before they are read
        report: dict[str, Any] = {}
        linked: dict[Path, Path] = {}
        # Nothing but what is in the key: a stage can then depend on nothing else.
        options, engine = self._touching(checkpoint)
        if engine is None:
            graph, linked = export_stage(checkpoint, self.stage, options, folder, quiet)
            spec = _plain(graph)
            own = [folder / graph.onnx, folder / "onnx" / "weights" / f"{self.stage}.data"]
            files = {file.relative_to(folder).as_posix(): file_spec(file) for file in own if file.exists()}
        else:
            plan, files, report = build_engine(checkpoint, self.stage, options, engine, folder, quiet)
            spec = _plain(plan)
        second = {name.relative_to(folder).as_posix(): file for name, file in linked.items()}
        # Their hashes are known when the scan of the checkpoint is done.
        files |= {path: FileSpec(file.stat().st_size, "") for path, file in second.items()}
        return Finished(key, spec, report, files), second

    def _touching(self, checkpoint: Checkpoint) -> tuple[StageOptions, EngineOptions | None]:
        """What of the options touches this graph, so that others leave it as it is."""
        options = self.options.of_stage(self.stage, checkpoint)
        return options, self.engine and self.engine.of_graph(graph_record(self.stage, checkpoint).inputs)


def _plain(spec: GraphSpec | EngineSpec) -> dict[str, Any]:
    """As JSON has it: lists instead of tuples."""
    return json.loads(json.dumps(asdict(spec)))


def jobs_of(stages: Sequence[str], options: StageOptions, engine: EngineOptions | None) -> list[Job]:
    """The jobs of one backend, in the order in which they are best done; graphs for tiles come after the whole ones."""
    first = [stage for stage in stages if stage in _FIRST] if engine else []
    return [Job(name, options, engine) for name in graphs_of(dict.fromkeys((*first, *stages)))]

"""The files of a model repository: configuration, code, warm-up request, bundle."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import runtime
import serving
from export.triton.config import ModelConfig, config_text
from export.triton.warmup import FOLDER, warmup_inputs
from runtime.bundle.manifest import Manifest
from runtime.constants import MANIFEST

BUNDLE_FOLDER = "bundle"
"""The bundle's directory in the version directory of the first model; the streaming model reads it there."""
VERSION = "1"
_CODE = {False: "unary.py", True: "stream.py"}
_CHUNK = 8 << 20


@dataclass(frozen=True)
class Repository:
    """What a model repository holds."""

    model: ModelConfig
    """Of the model that answers with the pictures; its ``bundle`` is the path on the server, or empty for a copy."""
    stream: bool
    """Whether there is a second model that streams."""

    @property
    def copies_bundle(self) -> bool:
        return not self.model.bundle

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """The configurations of all models."""
        name = self.model.name
        first = replace(self.model, bundle=self.model.bundle or BUNDLE_FOLDER)
        if not self.stream:
            return (first,)
        # A stream is one request with its own progress; there is nothing to batch.
        return first, replace(
            first,
            name=f"{name}_stream",
            bundle=self.model.bundle or f"../../{name}/{VERSION}/{BUNDLE_FOLDER}",
            stream=True,
            max_batch=1,
            dynamic_batching=False,
        )


def write_repository(
    repository: Repository, bundle: Path, manifest: Manifest, output: Path, on_bytes: Callable[[int], object]
) -> None:
    """Write all models into the existing directory `output`; `on_bytes` is told of each piece of the bundle."""
    for model in repository.models:
        _write_model(model, warmup_inputs(manifest, model.inputs), output / model.name)
    if repository.copies_bundle:
        target = output / repository.model.name / VERSION / BUNDLE_FOLDER
        for path in (*manifest.files, MANIFEST):
            _copy(bundle / path, target / path, on_bytes)


def _write_model(model: ModelConfig, warmup: dict[str, bytes], directory: Path) -> None:
    model = replace(model, warmup=tuple(warmup))
    version = directory / VERSION
    for package in (runtime, serving):
        source = Path(package.__path__[0])
        for file in sorted(source.rglob("*.py")):
            target = version / source.name / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copyfile(version / "serving" / _CODE[model.stream], version / "model.py")
    (directory / "configs").mkdir()
    (directory / "configs" / "cpu.pbtxt").write_text(config_text(model, "KIND_CPU"), encoding="utf-8")
    (directory / "config.pbtxt").write_text(config_text(model), encoding="utf-8")
    (directory / FOLDER).mkdir()
    for name, value in warmup.items():
        (directory / FOLDER / name).write_bytes(value)


def _copy(source: Path, target: Path, on_bytes: Callable[[int], object]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        while piece := reader.read(_CHUNK):
            writer.write(piece)
            on_bytes(len(piece))

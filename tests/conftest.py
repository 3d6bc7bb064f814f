"""Fixtures. Nothing here imports torch before a fixture needs it: tests/runtime also runs where torch is missing."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from support.slow import pytest_collection_modifyitems as pytest_collection_modifyitems  # pytest finds the hook here

from runtime.constants import BUNDLE_VARIABLE

# The models here are tiny: a second thread costs more in waiting than it computes, very much more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's float32 bundle: the one in $IDEOGRAM4_BUNDLE, or one built here, by one worker for all."""
    if given := os.environ.get(BUNDLE_VARIABLE):
        return Path(given)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    bundle = folder / "demo" / "bundle"
    bundle.parent.mkdir(exist_ok=True)
    with (folder / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not bundle.exists():
            from export.build.command import build
            from export.demo_model import DEMO_CHECKPOINT

            build(DEMO_CHECKPOINT, bundle, "fp32", "ort", quiet=True)
    return bundle


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """peer(shape, form) -> (pipeline of peers' classes, checkpoint directory), made once a session."""
    from support import peers

    made: dict[tuple[str, str], tuple[Any, Path]] = {}

    def make(shape: str, form: str) -> tuple[Any, Path]:
        if (shape, form) not in made:
            pipeline = peers.make_pipeline(peers.SHAPES[shape])
            directory = tmp_path_factory.mktemp(f"{shape}-{form}") / "checkpoint"
            if form.endswith("-nf4"):
                from support.nf4_files import save_nf4

                save_nf4(pipeline, directory, form.removesuffix("-nf4"))
            elif form.startswith("diffusers"):
                peers.save_diffusers(pipeline, directory, "60KB" if form == "diffusers-shards" else "5GB")
            else:
                peers.save_original(pipeline, directory, form.removeprefix("original-"))
            made[shape, form] = pipeline, directory
        return made[shape, form]

    return make


@pytest.fixture(scope="session")
def peer_bundle(tmp_path_factory: pytest.TempPathFactory, peer: Any) -> Any:
    """peer_bundle(shape, precision) -> bundle directory of the peer's diffusers checkpoint, built once a session."""
    from export.build.command import build

    made: dict[tuple[str, str], Path] = {}

    def make(shape: str, precision: str) -> Path:
        if (shape, precision) not in made:
            directory = tmp_path_factory.mktemp(f"{shape}-{precision}") / "bundle"
            build(peer(shape, "diffusers")[1], directory, precision, "ort", quiet=True)
            made[shape, precision] = directory
        return made[shape, precision]

    return make

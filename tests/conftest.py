"""Fixtures. Nothing here imports torch before a fixture needs it: tests/runtime also runs where torch is missing."""

import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from support.bundles import Shared, build_bundle, make_once
from support.slow import pytest_collection_modifyitems as pytest_collection_modifyitems  # pytest finds the hook here

from runtime.constants import BUNDLE_VARIABLE

# The models here are tiny: a second thread costs more in waiting than it computes, very much more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class OneThread(onnxruntime.SessionOptions):
    """ONNX Runtime's options with one thread where nobody asks for more: the same pictures, in a third of the time."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_op_num_threads = 1


onnxruntime.SessionOptions = OneThread


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """shared(name, make) -> a directory that ``make(directory)`` fills, once for all workers of a run.

    For reading only: a test that changes a file takes a copy.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return lambda name, make: make_once(folder / "shared" / name, make)


@pytest.fixture(scope="session")
def demo_bundle(shared: Shared) -> Path:
    """The demo model's float32 bundle: the one in $IDEOGRAM4_BUNDLE, or one built here."""
    if given := os.environ.get(BUNDLE_VARIABLE):
        return Path(given)

    def make(folder: Path) -> None:
        from export.demo_model import DEMO_CHECKPOINT

        build_bundle(DEMO_CHECKPOINT, folder / "bundle", "fp32")

    return shared("demo", make) / "bundle"


@pytest.fixture(scope="session")
def demo_weight_only_bundle(shared: Shared) -> Path:
    """The demo model with float8 weights and float32 activations."""

    def make(folder: Path) -> None:
        from export.demo_model import DEMO_CHECKPOINT

        build_bundle(DEMO_CHECKPOINT, folder / "bundle", "fp8-weight-only")

    return shared("demo-fp8-weight-only", make) / "bundle"


@pytest.fixture(scope="session")
def demo_fp8_bundle(shared: Shared) -> Path:
    """The demo model in float8, attention included, with the ranges that its build measures."""

    def make(folder: Path) -> None:
        from export.demo_model import DEMO_CHECKPOINT

        build_bundle(DEMO_CHECKPOINT, folder / "bundle", "fp8", attention="fp8")

    return shared("demo-fp8", make) / "bundle"


@pytest.fixture(scope="session")
def wide_checkpoint(shared: Shared) -> Path:
    """Two blocks of the real width, 4608 in 18 heads of 256: 0.6 GB of weights in each transformer.

    Activation ranges lie beside it in ``ranges.json``.
    """
    from support.processes import make_checkpoint

    def make(folder: Path) -> None:
        make_checkpoint(folder / "checkpoint", "--size", "wide", "--ranges", folder / "ranges.json")

    return shared("wide", make) / "checkpoint"


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
def peer_bundle(shared: Shared, peer: Any) -> Any:
    """peer_bundle(shape, precision) -> bundle directory of the peer's diffusers checkpoint."""

    def make(shape: str, precision: str) -> Path:
        # The peers' random weights come from a seed, so that every worker's checkpoint is the same.
        checkpoint = peer(shape, "diffusers")[1]
        name = f"{shape}-{precision}"
        return shared(name, lambda folder: build_bundle(checkpoint, folder / "bundle", precision)) / "bundle"

    return make

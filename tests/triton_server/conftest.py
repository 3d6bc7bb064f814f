"""Fixtures for the tests on the real server. They need the extra ``triton`` and are run by ``make triton-test``;
``make test`` leaves this directory alone (``norecursedirs`` in pyproject.toml).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from export.triton.__main__ import generate
from export.triton.config import ModelConfig
from runtime import Pipeline
from scripts.triton.server import Server, serve


@pytest.fixture(scope="session")
def repository(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with both models, the bundle inside."""
    output = tmp_path_factory.mktemp("triton") / "repository"
    # One thread, as in the pipeline that the pictures are compared with.
    generate(demo_bundle, output, ModelConfig(threads=1), stream=True, quiet=True)
    return output


@pytest.fixture(scope="session")
def pipeline(demo_bundle: Path) -> Pipeline:
    """What the server's pictures are compared with."""
    return Pipeline.load(demo_bundle, threads=1)


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """A server of `repository` for all tests that leave it as it is."""
    with serve(repository) as running:
        yield running


@pytest.fixture
def altered(demo_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """altered(code, **options) -> repository whose models run `code` after their own, to bring about what is rare."""

    def make(code: str, stream: bool = False, **options: Any) -> Path:
        output, model = tmp_path / "altered", ModelConfig(threads=1, **options)
        generate(demo_bundle, output, model, bundle_path=str(demo_bundle.absolute()), stream=stream, quiet=True)
        for file in output.glob("*/1/model.py"):
            file.write_text(file.read_text() + "\n\n" + code)
        return output

    return make

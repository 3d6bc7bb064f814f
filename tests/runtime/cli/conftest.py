"""Fixtures for ``trt-generate`` on the demo bundle."""

import pytest

from runtime import Pipeline
from runtime.cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(demo_bundle, folder):
    """run(*arguments) -> exit code of ``trt-generate``, run in `folder`."""
    return lambda *arguments: main(["--bundle", str(demo_bundle), *map(str, arguments)])


@pytest.fixture
def loads(monkeypatch):
    """How often a pipeline is loaded, and with which options."""
    calls, load = [], Pipeline.load
    monkeypatch.setattr(Pipeline, "load", lambda *args, **kwargs: calls.append(kwargs) or load(*args, **kwargs))
    return calls

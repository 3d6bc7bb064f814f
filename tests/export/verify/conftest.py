"""Fixtures: a report on the demo's float32 and float8 bundles."""

import pickle

import pytest
from support.bundles import build_bundle
from support.verified import PROMPTS

from export.demo_model import DEMO_CHECKPOINT
from export.verify.command import verify


@pytest.fixture(scope="session")
def fp8_bundle(shared):
    """The demo model at W8A8."""
    return shared("demo-eight", lambda folder: build_bundle(DEMO_CHECKPOINT, folder / "eight", "fp8")) / "eight"


@pytest.fixture(scope="session")
def verified(demo_bundle, fp8_bundle, shared):
    """(report, its directory) of both bundles with two prompts."""

    def make(folder):
        bundles = [demo_bundle, fp8_bundle]
        settings = {"texts": PROMPTS, "preset": "V4_TURBO_12", "seed": 5, "quiet": True}
        report = verify(bundles, DEMO_CHECKPOINT, folder / "report", **settings)
        (folder / "report.pickle").write_bytes(pickle.dumps(report))

    folder = shared("verified", make)
    return pickle.loads((folder / "report.pickle").read_bytes()), folder / "report"

"""Fixtures: a report on the demo's float32 and float8 bundles."""

import pickle

import pytest
from support.bundles import build_bundle
from support.verified import PROMPTS

from calibration.static.ranges import write_ranges
from calibration.static.record import calibrate
from export.demo_model import DEMO_CHECKPOINT
from export.verify.command import verify
from model.checkpoint.directory import open_checkpoint


@pytest.fixture(scope="session")
def fp8_bundle(shared):
    """The demo model at W8A8, with ranges from a single prompt."""

    def make(folder):
        ranges = calibrate(open_checkpoint(DEMO_CHECKPOINT), [PROMPTS[0]], steps=4, quiet=True)
        write_ranges(ranges, folder / "ranges.json")
        build_bundle(DEMO_CHECKPOINT, folder / "eight", "fp8", calibration=folder / "ranges.json")

    return shared("demo-fp8-one-prompt", make) / "eight"


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

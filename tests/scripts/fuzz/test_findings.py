"""Inputs that showed a fault once, read again by what they broke, and a few new ones for every reader."""

from pathlib import Path

import pytest

from scripts.fuzz.case import World, make_case
from scripts.fuzz.findings import ABOUT, target_of
from scripts.fuzz.judge import judge
from scripts.fuzz.targets import TARGETS
from scripts.fuzz.worker import check_examples, input_of
from scripts.fuzz.world import make_world

FINDINGS = sorted(file for file in Path(__file__).with_name("findings").iterdir() if not file.name.endswith(ABOUT))
_INPUTS = 5
_SEED = 2026


@pytest.fixture(scope="module")
def world(shared) -> World:
    folder = shared("fuzz", make_world)
    return World(folder / "bundle", folder / "checkpoint")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # odd options may look like the id of a model


@pytest.mark.parametrize("file", FINDINGS, ids=lambda file: file.name)
def test_what_was_found_is_mended(file, world, tmp_path):
    case = make_case(TARGETS[target_of(file)], world, tmp_path / "case")
    assert judge(case, file.read_bytes()).fault is None


@pytest.mark.parametrize("target", TARGETS)
def test_examples_are_taken_and_broken_ones_treated_well(target, world, tmp_path):
    case = make_case(TARGETS[target], world, tmp_path / "case")
    check_examples(target, case)
    for index in range(_INPUTS):
        content = input_of(case, target, _SEED, index)
        fault = judge(case, content).fault
        # Whether 2 s are enough on a busy machine is for the campaign to say.
        assert fault is None or fault.kind == "slow", content[:1000]

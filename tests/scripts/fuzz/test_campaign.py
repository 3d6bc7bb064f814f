"""The fuzzer finds what is planted: readers that fail, hang, die, take too much memory or word an error badly."""

import os
import signal
from pathlib import Path

import pytest

from runtime.errors import RequestError
from scripts.fuzz.campaign import Campaign
from scripts.fuzz.case import Case, World
from scripts.fuzz.findings import target_of
from scripts.fuzz.worker import check_examples

_NOWHERE = World(Path("bundle"), Path("checkpoint"))
_BAD = b"!"


def _case(folder: Path, fault) -> Case:
    """A reader that takes letters, refuses digits as it should, and does `fault` when it meets `_BAD`."""
    file = folder / "input.txt"

    def read() -> None:
        content = file.read_bytes()
        if content == _BAD:
            fault(file)
        if content.isdigit():
            raise RequestError(f"{file} is a number, wanted letters")

    return Case(
        file,
        (b"abc",),
        lambda random, example: random.choice((b"abc", b"12", _BAD)),
        read,
        (file.name,),
        peak_bytes=50 << 20,
    )


def _raise(error):
    raise error


def _hang(file):
    while True:
        pass


def _grow(file):
    return len(b"x" * (100 << 20))


FAULTS = {
    "exception": lambda file: {}[str(file)],
    "unnamed": lambda file: _raise(RequestError("something is wrong")),
    "long": lambda file: _raise(RequestError(f"{file} is {'x' * 5000}")),
    "control": lambda file: _raise(RequestError(f"{file} is \u202e")),
    "memory": _grow,
    "crash": lambda file: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_planted_fault_is_found(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.fuzz.worker.DEADLY_SECONDS", 3)
    monkeypatch.setattr("scripts.fuzz.judge.describe", str)  # which writes controls as escapes
    targets = {"planted": lambda world, folder: _case(folder, FAULTS[kind])}
    campaign = Campaign(targets, _NOWHERE, tmp_path, tmp_path / "found", lambda text: None)
    results = campaign.run(seed=1, workers=1, seconds=60, count=8)
    assert [fault.kind for fault in results.described.values()] == [kind]
    found = next(iter(results.files.values()))[0]
    assert found.read_bytes() == _BAD and target_of(found) == "planted"


def test_what_is_refused_well_is_no_fault(tmp_path):
    targets = {"planted": lambda world, folder: _case(folder, lambda file: None)}
    results = Campaign(targets, _NOWHERE, tmp_path, tmp_path / "found", lambda text: None).run(1, 1, 60, 20)
    figures = results.figures["planted"]
    assert figures.inputs == 20 and 0 < figures.accepted < 20
    assert not results.faults and not (tmp_path / "found").exists()


def test_a_reader_that_refuses_its_example_tests_nothing(tmp_path):
    case = _case(tmp_path, lambda file: None)
    refused = Case(case.file, (b"12",), case.mutate, case.read, case.names)
    with pytest.raises(RuntimeError, match="planted: the valid example 0 is not taken"):
        check_examples("planted", refused)

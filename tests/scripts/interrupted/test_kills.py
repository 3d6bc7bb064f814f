"""The campaign of kills and full disks sees what goes wrong, in commands of a few lines."""

import os
from pathlib import Path

import pytest

from scripts.interrupted.kills import Moment, kill, undisturbed
from scripts.interrupted.works import Work


def _atomic() -> int:
    pending = Path(".bundle")
    pending.mkdir(exist_ok=True)
    (pending / "a").write_text("a")
    (pending / "b").write_text("b")
    os.rename(pending, "bundle")
    return 0


def _half() -> int:
    """Writes under the final name."""
    Path("bundle").mkdir(exist_ok=True)
    Path("bundle/a").write_text("a")
    Path("bundle/b").write_text("b")
    return 0


def _forgetful() -> int:
    """Takes what an earlier run began for its own."""
    if Path("begun").exists():
        return 0
    Path("begun").touch()
    Path("result").write_text("whole")
    Path("begun").unlink()
    return 0


def _litter() -> int:
    """Leaves a file of another name at each start."""
    mine = Path(f".{os.getpid()}")
    mine.touch()
    Path("result").write_text("whole")
    mine.unlink()
    return 0


def _faults(command, folder) -> set[str]:
    cache = folder / "cache"
    (cache / "ideogram4-trt").mkdir(parents=True)
    place = folder / "trial" / "folder"
    # Every work in the campaign fills its user's cache; these have none.
    known = undisturbed(Work("planted", command, whole=("bundle",)), place, cache)
    assert known.ended.code == 0 and known.ended.calls > 1
    trials = [kill(known, place, cache, [Moment(call=call)]) for call in range(1, known.ended.calls + 1)]
    assert all(trial.met == 1 for trial in trials)
    return {fault for trial in trials for fault in trial.faults}


def test_a_command_that_renames_has_no_fault(tmp_path):
    assert _faults(_atomic, tmp_path) == set()


@pytest.mark.parametrize(
    ("command", "said"),
    [(_half, "killed: "), (_forgetful, "result"), (_litter, "left behind")],
    ids=["half", "forgetful", "litter"],
)
def test_planted_faults_are_seen(command, said, tmp_path):
    assert any(said in fault for fault in _faults(command, tmp_path))

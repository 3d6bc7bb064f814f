"""The sensitivity report of the demo model."""

import json

import pytest

from calibration.points import POINTS
from export.demo_model import DEMO_CHECKPOINT
from export.sensitivity import groups_of, main
from model.checkpoint.directory import open_checkpoint


def test_report(tmp_path, capsys):
    output = tmp_path / "s.json"
    assert main(["--limit", "1", "--levels", "2", "--output", str(output)]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    rows = {(row["stage"], row["group"]): row for row in report["groups"]}
    layers = open_checkpoint(DEMO_CHECKPOINT).transformer.num_layers
    assert set(rows) == {(stage, group) for stage in ("dit_cond", "dit_uncond") for group in groups_of(stage, layers)}
    errors = [row["error"] for row in report["groups"]]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0
    for stage in ("dit_cond", "dit_uncond"):
        everything = rows[stage, "everything"]
        assert [0 < level["t"] < 1 and level["error"] > 0 for level in everything["errors"]] == [True, True]
        # Roundings of different tensors are independent: together they cost more than any alone.
        assert everything["error"] > max(rows[stage, f"{stage}.layers.*.{point}"]["error"] for point in POINTS)
    table = capsys.readouterr().out
    assert "dit_cond: everything" in table and "dit_uncond.layers.*.feed_forward.w1" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--limit", "0"), "--limit is 0, wanted at least 1"),
        (("--levels", "-1"), "--levels is -1, wanted at least 1"),
        (("--preset", "V4_NONE"), "preset is 'V4_NONE', wanted one of"),
        (("--checkpoint", "none"), "there is no checkpoint directory none"),
        (("--calibration", "none.json"), "none.json"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--output", "s.json", "--quiet", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("export.sensitivity: error: ")
    assert list(tmp_path.iterdir()) == []

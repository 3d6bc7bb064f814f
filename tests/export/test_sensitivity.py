"""The sensitivity report of the demo model."""

import json

import pytest

from calibration.points import inputs_of
from export.sensitivity import main


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_report(tmp_path, capsys, precision):
    output = tmp_path / "s.json"
    assert main(["--precision", precision, "--output", str(output)]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    stages = (["text_encoder"] if precision == "int8" else []) + ["dit_cond", "dit_uncond"]
    assert list(report["stages"]) == stages
    layers = {"text_encoder": 36, "dit_cond": 6, "dit_uncond": 6}
    assert set(report["points"]) == {name for stage in stages for name in inputs_of(stage, layers[stage])}
    assert len(report["layers"]) == sum(layers[stage] for stage in stages)
    errors = list(report["points"].values())
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in table[1 : 1 + len(stages)]] == stages
    assert table[3 + len(stages)].split()[-1] == next(iter(report["points"])), "the worst point comes first"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "int8", "--attention", "fp8"), "--attention fp8 goes with --precision fp8"),
        (("--precision", "int8", "--activations", "static"), "--activations static goes with --precision fp8"),
        (("--checkpoint", "none"), "there is no checkpoint directory none"),
        (("--precision", "int8", "--calibration", "none.safetensors"), "none.safetensors"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["--output", "s.json", "--quiet", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("export.sensitivity: error: ")
    assert list(tmp_path.iterdir()) == []

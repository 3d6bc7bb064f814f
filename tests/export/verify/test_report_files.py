"""The report's JSON file, and which directories it may replace."""

import json
import shutil
from pathlib import Path

import pytest
from support.verified import PROMPTS, STEPS

from export.verify.report_files import HTML, JSON, check_output


def test_json(verified):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((verified[1] / JSON).read_text(encoding="utf-8"), parse_constant=refuse)
    assert list(data) == [
        "format",
        "version",
        "checkpoint",
        "device",
        "preset",
        "steps",
        "guidance",
        "width",
        "height",
        "prompts",
        "time_rounding",
        "grid_flag",
        "bundles",
    ]
    assert (data["format"], data["version"], data["checkpoint"]) == ("ideogram4-quality", 1, "demo")
    assert (data["preset"], data["steps"], len(data["guidance"])) == (
        None,
        STEPS,
        STEPS,
    )  # the demo has a guidance of its own
    assert [(p["prompt"], p["seed"]) for p in data["prompts"]] == [(PROMPTS[0], 5), (PROMPTS[1], 6)]
    assert len(data["time_rounding"]) == 2 and data["time_rounding"][0].keys() == {"max_difference", "psnr", "ssim"}
    exact, quantized = data["bundles"]
    assert (exact["precision"], exact["timestep_dtype"], exact["quantization"]) == ("fp32", "float32", None)
    assert (quantized["label"], quantized["precision"], quantized["timestep_dtype"]) == ("eight", "fp8", "bfloat16")
    assert quantized["quantization"] == {
        "activations": "token",
        "attention": "base",
        "keep_base": [],
        "smoothing": None,
    }
    assert 0 < quantized["bytes"] < exact["bytes"]
    for bundle in data["bundles"]:
        graphs = bundle["graphs"]
        assert {stage: [len(calls) for calls in plans] for stage, plans in graphs.items()} == {
            "text_encoder": [1, 1],
            "dit_cond": [STEPS] * 2,
            "dit_uncond": [STEPS] * 2,
            "vae_decoder": [1, 1],
        }
        assert graphs["dit_cond"][0][0].keys() == {"relative", "cosine"}
        assert graphs["vae_decoder"][0][0].keys() == {"max_difference", "psnr", "ssim"}
        for picture in bundle["pictures"]:
            assert picture.keys() == {"max_difference", "psnr", "ssim", "latents", "grid"}
            assert [check.keys() for check in picture["grid"]] == [{"period", "ratio", "reference", "flagged"}] * 2


def test_overwriting_takes_only_what_the_command_made(verified, tmp_path):
    report = Path(shutil.copytree(verified[1], tmp_path / "report"))
    with pytest.raises(FileExistsError, match="choose another --output or add --overwrite"):
        check_output(report, overwrite=False)
    check_output(report, overwrite=True)
    (report / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / HTML).write_text("mine")
    (tmp_path / "other" / JSON).write_text('{"format": "another"}')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / HTML).write_text("mine")
    (tmp_path / "deep" / JSON).write_text("[" * 100_000)
    for name in ("report", "empty", "file", "other", "deep"):
        with pytest.raises(FileExistsError, match="is not a report; it is not overwritten"):
            check_output(tmp_path / name, overwrite=True)

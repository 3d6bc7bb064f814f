"""One graph alone, as scripts/bench/run_stage.py runs it."""

import pytest

from scripts.bench import run_stage


@pytest.mark.parametrize("stage", ["text_encoder", "dit_cond"])
def test_one_stage_alone(demo_bundle, stage, capsys):
    assert run_stage.main([str(demo_bundle), stage]) == 0
    assert "finite: True" in capsys.readouterr().out

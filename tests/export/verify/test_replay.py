"""The reference's run."""

import pytest
from support.verified import PROMPTS, STEPS

from calibration.plans import make_plans
from export.demo_model import DEMO_CHECKPOINT
from export.verify.replay import sample
from model.checkpoint.directory import open_checkpoint
from runtime.sampling.schedule import round_to_bfloat16


@pytest.mark.parametrize("time", ["float32", "bfloat16"])
def test_reference_rounds_the_time_as_the_bundle_does(time):
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    plans = make_plans(checkpoint, PROMPTS[:1], "V4_TURBO_12", None, None, None, 0)
    advanced = []
    (run,) = sample(checkpoint, plans, [time], "cpu", lambda: advanced.append(1))[time]
    wanted = [step.t if time == "float32" else round_to_bfloat16(step.t) for step in plans[0].steps]
    for stage in ("dit_cond", "dit_uncond"):
        assert [float(call.feeds["timestep"][0]) for call in run.calls[stage]] == wanted
    assert len(advanced) == STEPS and run.image.shape == (128, 128, 3)

"""Which steps run the unconditional pass, and what comes out when some do not."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Pipeline
from runtime.cli.main import main
from runtime.sampling.denoise import denoise
from runtime.sampling.guidance import EVERY_STEP, UnconditionalPasses, parse_interval, thin_out
from runtime.sampling.schedule import PRESETS, Sampling, schedule

STEPS = schedule(PRESETS["V4_DEFAULT_20"], 256, 256)


@pytest.fixture(scope="module")
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle)


def counted(graph, calls):
    return lambda **feeds: calls.append(float(feeds["timestep"][0])) or graph(**feeds)


def test_every_step_changes_nothing():
    assert thin_out(STEPS, EVERY_STEP) == STEPS


@given(st.floats(0, 0.9), st.floats(0.05, 1), st.integers(1, 7))
def test_interval_and_reuse(low, width, every):
    high = min(1.0, low + width)
    thinned = thin_out(STEPS, UnconditionalPasses((low, high), every))
    inside = [step for step in thinned if low <= step.t <= high]
    assert [step.guidance for step in inside] == [s.guidance for s in STEPS if low <= s.t <= high]
    assert all(step.guidance == 1 and not step.reuse for step in thinned if not low <= step.t <= high)
    assert [step.reuse for step in inside] == [index % every != 0 for index in range(len(inside))]


def test_first_step_after_a_gap_has_its_own_pass():
    steps = schedule(Sampling((7.0, 7.0, 1.0, 7.0, 7.0), 0.0, 1.5), 256, 256)
    assert [s.reuse for s in thin_out(steps, UnconditionalPasses(every=4))] == [False, True, False, False, True]


def test_reused_velocity_is_the_last_one():
    """With v_uncond = t the sum of all steps can be written down."""
    steps = thin_out(schedule(Sampling((3.0,) * 5, 0.0, 1.5), 256, 256), UnconditionalPasses(every=2))
    calls = []

    def unconditional(latents, t):
        calls.append(t)
        return np.full_like(latents, t)

    *_, last = denoise(lambda z, t: np.ones_like(z), unconditional, np.zeros((1, 1, 4), np.float32), steps)
    assert calls == [steps[0].t, steps[2].t, steps[4].t]
    used = [steps[index // 2 * 2].t for index in range(5)]
    wanted = sum(float(step.dt) * (3.0 - 2.0 * float(t)) for step, t in zip(steps, used, strict=True))
    assert np.allclose(last, wanted, atol=1e-6)  # five steps of float32 on values up to 3


def test_reuse_without_a_pass_before():
    steps = [s.__class__(s.sigma, s.sigma_next, s.guidance, reuse=True) for s in STEPS[:1]]
    with pytest.raises(ValueError, match="the first guided step cannot reuse an unconditional velocity"):
        list(denoise(lambda z, t: z, lambda z, t: z, np.zeros((1, 1, 4), np.float32), steps))


def test_pipeline_runs_only_those_passes(pipeline):
    calls = []
    real = pipeline.graphs["dit_uncond"]
    pipeline.graphs["dit_uncond"] = counted(real, calls)
    try:
        arguments = {"steps": 8, "guidance": 5.0, "seed": 1, "width": 256, "height": 256}
        full = pipeline.generate("x", **arguments).images
        assert len(calls) == 8
        calls.clear()
        made = pipeline.generate("x", **arguments, guidance_interval=(0.2, 0.8), uncond_every=2)
    finally:
        pipeline.graphs["dit_uncond"] = real
    times = [float(s.t) for s in schedule(Sampling((5.0,) * 8, 0.0, 1.5), 256, 256) if 0.2 <= s.t <= 0.8]
    assert calls == times[::2] and len(times) >= 3
    assert made.used["passes"] == {"interval": (0.2, 0.8), "every": 2}
    assert not np.array_equal(made.images, full)


def test_interval_equals_guidance_one_outside(pipeline):
    """The same as a schedule that has 1 there by hand: nothing else changes."""
    steps = schedule(Sampling((4.0,) * 6, 0.0, 1.5), 256, 256)
    weights = [4.0 if 0.3 <= step.t <= 1 else 1.0 for step in steps]
    assert {1.0, 4.0} == set(weights)
    by_hand = pipeline.generate("x", steps=6, guidance=weights, seed=1).images
    assert np.array_equal(
        pipeline.generate("x", steps=6, guidance=4.0, seed=1, guidance_interval=(0.3, 1)).images, by_hand
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": (0.5, 0.5)}, "guidance_interval is 0.5:0.5, wanted two times from 0 to 1, the lower one first"),
        ({"interval": (-0.1, 0.5)}, "guidance_interval is -0.1:0.5"),
        ({"interval": (0.1, 1.5)}, "guidance_interval is 0.1:1.5"),
        ({"interval": (float("nan"), 0.5)}, "guidance_interval is nan:0.5"),
        ({"every": 0}, "uncond_every is 0, wanted 1 to 1000 steps"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UnconditionalPasses(**arguments)


def test_parse_interval():
    assert parse_interval("0.1:0.8") == (0.1, 0.8) and parse_interval(" 0 : 1e-1 ") == (0.0, 0.1)
    for text in ("", "0.1", "a:b", "0.1:0.2:0.3", ":", "0.1:"):
        with pytest.raises(ValueError, match="wanted A:B, as in"):
            parse_interval(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--guidance", "1", "--uncond-every", "2"), "needs guidance, and all of it is 1"),
        (("--unconditional", "off", "--guidance-interval", "0:0.5"), "needs guidance, and all of it is 1"),
        (("--guidance-interval", "0.5:0.4"), "guidance_interval is 0.5:0.4"),
        (("--guidance-interval", "0.9999:1"), "the guidance interval 0.9999:1 holds no step with guidance"),
        (("--guidance-interval", "x"), "guidance_interval is 'x', wanted A:B"),
        (("--uncond-every", "0"), "uncond_every is 0"),
    ],
)
def test_command_refuses(demo_bundle, tmp_path, capsys, arguments, message):
    output = tmp_path / "a.png"
    assert main(["--bundle", str(demo_bundle), "--prompt", "x", "--output", str(output), *arguments]) == 1
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_command_records_it(demo_bundle, tmp_path, capsys):
    arguments = [
        "--prompt",
        "x",
        "--steps",
        "3",
        "--seed",
        "1",
        "--json",
        "--quiet",
        "--output",
        str(tmp_path / "a.png"),
    ]
    assert main(["--bundle", str(demo_bundle), *arguments, "--guidance-interval", "0:0.6", "--uncond-every", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["passes"] == {"interval": [0.0, 0.6], "every": 3}

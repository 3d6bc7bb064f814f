"""What a bundle's manifest says where a request says nothing."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from runtime import Pipeline
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.cli.main import main
from runtime.plan import make_plan
from runtime.prompt.tokens import PromptEncoder
from runtime.sampling.schedule import PRESETS


@pytest.fixture(scope="module")
def plan_of(demo_bundle):
    """plan_of(defaults, fields): the plan of a request to the demo's manifest with other defaults."""
    manifest = read_manifest(demo_bundle)
    encoder = PromptEncoder(demo_bundle / manifest.prompt.tokenizer, manifest.prompt)
    none = {"default_guidance": None}  # the demo has one
    return lambda defaults, fields: make_plan(
        replace(manifest, **none | defaults), encoder, "x", **{"seed": 0} | fields
    )


@pytest.mark.parametrize(
    ("defaults", "fields", "guidance", "preset"),
    [
        ({}, {}, PRESETS["V4_DEFAULT_20"].guidance, "V4_DEFAULT_20"),
        ({"default_preset": "V4_TURBO_12"}, {}, PRESETS["V4_TURBO_12"].guidance, "V4_TURBO_12"),
        ({"default_guidance": 3.0}, {}, (3.0,) * 20, None),
        ({"default_guidance": 3.0}, {"preset": "V4_TURBO_12"}, (3.0,) * 12, None),
        ({"default_guidance": 3.0}, {"steps": 4}, (3.0,) * 4, None),
        ({"default_guidance": 3.0}, {"guidance": 5}, (5.0,) * 20, None),
        ({"default_guidance": 3.0}, {"unconditional": "off"}, (1.0,) * 20, None),
        # A preset for distilled weights has no guidance, whatever the bundle prefers.
        ({"default_guidance": 3.0}, {"preset": "V4_FAST_20"}, (1.0,) * 20, "V4_FAST_20"),
    ],
)
def test_a_request_wins_over_the_bundle_and_the_bundle_over_the_preset(plan_of, defaults, fields, guidance, preset):
    plan = plan_of(defaults, fields)
    assert (plan.sampling.guidance, plan.sampling.preset) == (guidance, preset)


def test_the_command_and_the_pipeline_use_them(demo_bundle, tmp_path, capsys):
    bundle = shutil.copytree(demo_bundle, tmp_path / "bundle", copy_function=os.link)
    manifest = bundle / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.unlink()  # a second name of the shared bundle's
    manifest.write_text(json.dumps(data | {"default_preset": "V4_TURBO_12", "default_guidance": 2.5}))
    options = ["--bundle", str(bundle), "--prompt", "x", "--dry-run", "--json", "--output", str(tmp_path / "a.png")]
    assert main([*options, "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["sampling"]["guidance"] == [2.5] * 12
    with Pipeline.load(bundle) as pipeline:
        assert make_plan(pipeline.manifest, pipeline.prompt, "x").sampling.guidance == (2.5,) * 12


def test_a_manifest_of_an_earlier_version_has_none(demo_bundle):
    data = json.loads((demo_bundle / "manifest.json").read_text())
    data.pop("default_guidance", None)
    assert Manifest.from_json(json.dumps(data)).default_guidance is None

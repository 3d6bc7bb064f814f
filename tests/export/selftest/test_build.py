"""The self-test as a build writes it: what it holds, when it is kept, and how far it lets graphs be off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.bundles import build_bundle
from support.measure import relative_error

from export.build import self_test
from export.demo_model import DEMO_CAPTIONS, DEMO_CHECKPOINT
from export.graph.precision import precision_of
from export.graph.recipe import recipe_of
from export.graph.records import graphs_of
from export.graph.stage import StageOptions, export_stage
from export.rounding.inputs import TIMES
from export.selftest.calls import expected_calls, side_within, together
from export.selftest.weight_errors import weight_errors
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.sources import Known
from runtime.backend.ort import opener
from runtime.bundle.graph_specs import SizeRange
from runtime.bundle.manifest import read_manifest
from runtime.selftest.contents import SELF_TEST, read_self_test


@pytest.fixture(scope="module")
def demo():
    return open_checkpoint(DEMO_CHECKPOINT)


@pytest.fixture(scope="module")
def calls(demo):
    return expected_calls(demo, DEMO_CAPTIONS[0], 128, {}, quiet=True)


def test_every_graph_is_in_it(demo, calls):
    assert calls.keys() == set(graphs_of(demo.sources))
    assert [len(calls[stage]) for stage in ("text_encoder", "dit_cond", "dit_uncond")] == [1, len(TIMES), len(TIMES)]


@pytest.mark.parametrize("stage", ["text_encoder", "dit_cond", "dit_uncond"])
def test_product_by_product_is_the_whole_stage(demo, calls, stage):
    """Batched and read piece by piece, against one input at a time; both in float32."""
    module = demo.load(stage)
    inputs = [{name: torch.from_numpy(array) for name, array in call.feeds.items()} for call in calls[stage]]
    with torch.no_grad():
        found = together(demo, stage, inputs)
        for one, result in zip(inputs, found, strict=True):
            assert relative_error(result.numpy(), module(**one).numpy()) < 5e-6


def test_sides_that_engines_take():
    assert side_within(256, []) == 256
    assert side_within(256, [[SizeRange(512, 1024, 2048)]]) == 512
    assert side_within(256, [[SizeRange(64, 128, 128), SizeRange(512, 512, 512)]]) == 128


def test_it_is_kept_while_nothing_changes(tmp_path, monkeypatch):
    bundle = build_bundle(DEMO_CHECKPOINT, tmp_path / "bundle", "fp32")
    first = (bundle / SELF_TEST).read_bytes()
    assert SELF_TEST in read_manifest(bundle).files
    monkeypatch.setattr(self_test, "expected_calls", lambda *_: pytest.fail("computed again"))
    build_bundle(DEMO_CHECKPOINT, bundle, "fp32", overwrite=True)
    assert (bundle / SELF_TEST).read_bytes() == first
    monkeypatch.undo()
    build_bundle(DEMO_CHECKPOINT, bundle, "fp32", overwrite=True, default_preset="V4_TURBO_12")
    again = read_self_test(bundle)
    assert len(again.host["schedule"]) == 12, "what depends on the manifest is always fresh"
    build_bundle(DEMO_CHECKPOINT, bundle, "fp32", overwrite=True, self_test=False)
    assert not (bundle / SELF_TEST).exists() and SELF_TEST not in read_manifest(bundle).files


def test_the_comparisons_results_are_used(tmp_path, monkeypatch):
    """The demo is compared in float32: its stages are not computed twice for the same inputs. A build that was
    interrupted in between computes them again, and gets the same bits."""
    known = {}
    compute = self_test.expected_calls

    def note(checkpoint, prompt, side, calls, quiet):
        known.update(calls)
        return compute(checkpoint, prompt, side, calls, quiet)

    monkeypatch.setattr(self_test, "expected_calls", note)
    bundle = build_bundle(DEMO_CHECKPOINT, tmp_path / "bundle", "int8")
    assert known.keys() == {"text_encoder", "dit_cond", "dit_uncond"}
    plain = compute(open_checkpoint(DEMO_CHECKPOINT), DEMO_CAPTIONS[0], 128, {}, quiet=True)
    for stage, made in known.items():
        for one, other in zip(made, plain[stage], strict=True):
            assert np.array_equal(one.output, other.output)
    test = read_self_test(bundle)
    assert test.picture.side == 128 and 0.01 < test.tolerances["ort"]["dit_cond"] < 0.1


def test_weights_that_a_build_rounds(demo, calls, tmp_path):
    """Of a float checkpoint; in float8 alone, so the graph is off by what its weights are off."""
    stage = "dit_uncond"
    sources = {name: Known(source.read()) for name, source in demo.sources[stage].items()}
    # The demo's values are codes: these lie between them.
    sources |= {
        name: Known(known.value * torch.linspace(0.9, 1.1, known.shape[1]))
        for name, known in sources.items()
        if name.endswith("w1.weight")
    }
    plain = replace(demo, sources=demo.sources | {stage: sources})
    types = precision_of("fp8-weight-only", None, "ort")
    options = StageOptions(types, recipe_of(types), {})
    assert weight_errors(demo, options, calls) == {}, "codes that are taken as they are cost nothing"
    wanted = expected_calls(plain, DEMO_CAPTIONS[0], 128, {}, quiet=True)
    found = weight_errors(plain, options, wanted)
    spec, _ = export_stage(plain, stage, options, tmp_path, quiet=True)
    graph = opener(tmp_path, "cpu", 1)(stage, spec)
    errors = [relative_error(graph(**call.feeds), call.output) for call in wanted[stage]]
    assert found.keys() == {stage} and found[stage] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.01)
    assert found[stage] > 1e-3

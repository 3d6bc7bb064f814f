"""The self-test on engines that compute what the demo's graphs compute: with CUDA graphs and without."""

from dataclasses import replace

import pytest
from support.engines.demo import EngineBundle
from support.engines.fake_enums import CudaGraphStrategy
from support.tampering import Tampered

from runtime.bundle.manifest import read_manifest
from runtime.selftest import run
from runtime.selftest.host import facts_of
from runtime.selftest.rows import failed
from runtime.selftest.run import Choices, run_self_test


@pytest.fixture
def engines(demo_bundle, tmp_path, monkeypatch):
    """The demo bundle with engines, and a self-test that knows them."""
    made = EngineBundle(demo_bundle, tmp_path / "bundle", monkeypatch)
    facts = facts_of(read_manifest(made.directory))
    Tampered.of(made.directory).self_test(
        lambda test: replace(test, facts=facts, tolerances={"rtx-sm89": test.tolerances["ort"]})
    )
    return made


def test_with_cuda_graphs_and_without(engines):
    outcome = run_self_test(engines.directory, Choices())
    assert failed(outcome.rows) == [] and outcome.where.startswith("rtx (cuda:0)")
    assert "without CUDA graphs" in {row.name for row in outcome.rows}
    strategies = [context.config.cuda_graph_strategy for context in engines.trt.contexts]
    half = len(strategies) // 2
    assert strategies == [CudaGraphStrategy.WHOLE_GRAPH_CAPTURE] * half + [CudaGraphStrategy.DISABLED] * half
    assert not engines.cudart.allocated, "both were closed"


def test_cuda_graphs_that_change_the_picture(engines, monkeypatch):
    pictures, make = [], run._picture

    def third_is_other(pipeline, test):
        pictures.append(make(pipeline, test))
        return pictures[-1] ^ (len(pictures) == 3)

    monkeypatch.setattr(run, "_picture", third_is_other)
    assert failed(run_self_test(engines.directory, Choices()).rows) == ["without CUDA graphs"]


def test_engines_that_the_self_test_does_not_know(engines):
    """Nothing passes without a tolerance."""
    Tampered.of(engines.directory).self_test(lambda test: replace(test, tolerances={}))
    assert "dit_cond" in failed(run_self_test(engines.directory, Choices(verify="off")).rows)


def test_a_machine_that_cannot_run_them(engines):
    engines.edit(lambda data: data.update(graphs={}))
    engines.cudart.gpus = 0
    outcome = run_self_test(engines.directory, Choices())
    assert failed(outcome.rows) == ["loading"] and not outcome.passed

"""Pipelines as context managers, and what is left of them."""

import gc
import weakref

import numpy as np
import pytest

import runtime
from runtime import BackendError, ClosedError, Ideogram4Error, Pipeline
from runtime.errors import BundleError, MissingFileError, NonFiniteError, RequestError
from runtime.plan import make_plan


def test_a_pipeline_is_closed_behind_its_block(demo_bundle):
    with Pipeline.load(demo_bundle) as pipeline:
        plan = make_plan(pipeline.manifest, pipeline.prompt, "x", steps=1, seed=0)
        session = weakref.ref(pipeline.graphs["dit_cond"].session)
        kept = pipeline.graphs["text_encoder"]
    gc.collect()
    assert session() is None, "ONNX Runtime's session is gone"
    calls = {
        "generate": lambda: pipeline.generate("x"),
        "run": lambda: pipeline.run(plan),
        "text": lambda: pipeline.text(plan),
        "trajectory": lambda: list(pipeline.trajectory(plan)),
        "decode": lambda: pipeline.decode(np.zeros((1, 64, 128), np.float32), (8, 8)),
        "encode_image": lambda: pipeline.encode_image(np.zeros((128, 128, 3), np.uint8)),
        "enter": pipeline.__enter__,
    }
    for name, call in calls.items():
        with pytest.raises(ClosedError, match="the pipeline was closed; load the bundle again"):
            call()
            pytest.fail(name)
    with pytest.raises(ClosedError, match="graph text_encoder was closed"):
        kept(input_ids=np.zeros((1, 3), np.int64))
    pipeline.close()  # twice is once


def test_an_error_in_the_block_is_not_swallowed(demo_bundle):
    with pytest.raises(RequestError, match="the number of steps"), Pipeline.load(demo_bundle) as pipeline:
        pipeline.generate("x", steps=0)
    assert pipeline.closed


def test_all_errors_have_one_base_and_the_builtin_one():
    for ours, builtin in (
        (RequestError, ValueError),
        (BundleError, ValueError),
        (MissingFileError, FileNotFoundError),
        (BackendError, RuntimeError),
        (NonFiniteError, RuntimeError),
        (ClosedError, RuntimeError),
        (runtime.CaptionError, RequestError),
    ):
        assert issubclass(ours, Ideogram4Error) and issubclass(ours, builtin)


def test_the_public_names_are_there():
    for name in runtime.__all__:
        assert getattr(runtime, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Pipe'"):
        runtime.Pipe  # noqa: B018


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda bundle: Pipeline.load(bundle / "nowhere"), MissingFileError),
        (lambda bundle: Pipeline.load(bundle, backend="cpu"), RequestError),
        (lambda bundle: Pipeline.load(bundle, device="tpu"), RequestError),
        (lambda bundle: Pipeline.load(bundle, threads=0), RequestError),
        (lambda bundle: Pipeline.load(bundle, backend="rtx"), BackendError),
        (lambda bundle: Pipeline.load(bundle, devices=("cpu",)), RequestError),
        (lambda bundle: Pipeline.load(bundle).generate("x", image="nowhere.png"), MissingFileError),
        (lambda bundle: Pipeline.load(bundle).generate("x", width=100), RequestError),
        (lambda bundle: Pipeline.load(bundle).generate("x", noise=np.zeros((2, 64, 128), np.float32)), RequestError),
    ],
)
def test_what_a_user_can_cause_has_the_base_class(demo_bundle, call, error):
    with pytest.raises(error) as raised:
        call(demo_bundle)
    assert isinstance(raised.value, Ideogram4Error)

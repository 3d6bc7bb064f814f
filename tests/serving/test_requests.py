"""Requests to plans, without a server. The messages that `make_plan` has are tested with it."""

import numpy as np
import pytest

from runtime import Pipeline, RequestError
from runtime.plan import make_plan
from serving.requests import read_plans
from serving.settings import DEFAULT_WORK
from serving.tensors import INPUTS, NUMPY_TYPES


@pytest.fixture(scope="module")
def pipeline(demo_bundle):
    return Pipeline.load(demo_bundle)


def tensors(**columns):
    """A request: lists of rows, each with the entries of one row, as Triton hands them over."""
    types = {spec.name: NUMPY_TYPES[spec.type] for spec in INPUTS}
    return {name: np.array(rows, types[name]) for name, rows in columns.items()}


def test_prompt_alone(pipeline):
    [plan] = read_plans(pipeline, tensors(prompt=[[b"a cat"]]))
    assert plan == make_plan(pipeline.manifest, pipeline.prompt, "a cat", seed=plan.seed)


def test_every_input_is_used(pipeline):
    request = tensors(
        prompt=[["zwei Hüte".encode()]],
        seed=[[2**40]],
        steps=[[3]],
        guidance=[[7.1, 3.3, 1.0]],
        mu=[[0.3]],
        std=[[1.1]],
        width=[[320]],
        height=[[272]],
        num_images=[[2]],
        unconditional=[[b"conditional"]],
    )
    [plan] = read_plans(pipeline, request)
    assert plan == make_plan(
        pipeline.manifest,
        pipeline.prompt,
        "zwei Hüte",
        seed=2**40,
        steps=3,
        guidance=(7.1, 3.3, 1.0),
        mu=0.3,
        std=1.1,
        width=320,
        height=272,
        num_images=2,
        unconditional="conditional",
    )
    [preset] = read_plans(pipeline, tensors(prompt=[[b"x"]], preset=[[b"V4_TURBO_12"]]))
    assert (len(preset.steps), preset.sampling.mu) == (12, 0.5)


def test_guidance_is_the_decimal_that_was_meant(pipeline):
    """Float32 has no 7.1; what trt-generate reads from its command line and writes into the PNG is 7.1."""
    [plan] = read_plans(pipeline, tensors(prompt=[[b"x"]], steps=[[2]], guidance=[[7.1]]))
    assert plan.sampling.guidance == (7.1, 7.1)


def test_rows_have_their_own_values(pipeline):
    plans = read_plans(pipeline, tensors(prompt=[[b"a"], [b"b"]], seed=[[1], [2]], steps=[[3], [4]]))
    assert [(plan.prompt, plan.seed, len(plan.steps)) for plan in plans] == [("a", 1, 3), ("b", 2, 4)]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "the input 'prompt' is missing"),
        (tensors(seed=[[1]]), "the input 'prompt' is missing"),
        (
            tensors(prompt=[[b"x"]]) | {"sead": np.zeros((1, 1))},
            "there is no input 'sead', wanted some of prompt, negative_prompt",
        ),
        (tensors(prompt=[[b"caf\xe9"]]), "the input 'prompt' is not UTF-8 text: byte 3 is invalid"),
        (tensors(prompt=[[b"x"]], preset=[[b"\xff"]]), "the input 'preset' is not UTF-8 text: byte 0"),
        (tensors(prompt=[b"x"]), r"the input 'prompt' is object \[1\], wanted object \[B, 1\]"),
        (tensors(prompt=[[b"x", b"y"]]), r"the input 'prompt' is object \[1, 2\], wanted object \[B, 1\]"),
        (tensors(prompt=np.empty((0, 1), object)), r"the input 'prompt' is object \[0, 1\], wanted"),
        (
            tensors(prompt=[[b"x"]], guidance=np.empty((1, 0))),
            r"'guidance' is float32 \[1, 0\], wanted float32 \[B, K up to 1000\]",
        ),
        (tensors(prompt=[[b"x"]]) | {"seed": np.ones((1, 1), np.int32)}, r"'seed' is int32 \[1, 1\], wanted int64"),
        (tensors(prompt=[[b"x"]], seed=[[1], [2]]), "the input 'seed' has 2 rows, wanted 1, as prompt has"),
        (tensors(prompt=[[b"x"]], steps=[[0]]), "^the number of steps is 0, wanted 1 to 1000"),
        (tensors(prompt=[[b"x"], [b" "]]), "^row 1: the prompt is empty"),
        (
            tensors(prompt=[[b"x"]] * 2, width=[[256], [320]], height=[[256], [256]]),
            "row 1 asks for 320x256 and row 0 for 256x256; the pictures",
        ),
        (tensors(prompt=[[b"x"]] * 2, num_images=[[40], [25]]), "the request asks for 65 pictures, wanted 1 to 64"),
        (tensors(prompt=[[b"x"]], guidance=[[np.inf]], steps=[[1]]), "guidance is inf"),
        (tensors(prompt=[[b"x"]], mu=[[np.nan]], steps=[[1]]), "mu is nan"),
    ],
)
def test_refused(pipeline, request_, message):
    with pytest.raises(ValueError, match=message):
        read_plans(pipeline, request_)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "preset", "unconditional", "fit", "vae_tile"])
def test_texts_are_measured_before_they_are_read(pipeline, monkeypatch, name):
    """Ten megabytes are refused by their length: neither decoded nor tokenized."""

    class Text(bytes):
        def decode(self, *_):
            raise AssertionError("somebody looked into the text")

    columns = {"prompt": [[b"x"]]}
    column = np.empty((1, 1), object)
    column[0, 0] = Text(b"a " * (5 << 20))
    with pytest.raises(RequestError, match=f"the input '{name}' has 10485760 bytes, wanted at most 65536$"):
        read_plans(pipeline, tensors(**columns) | {name: column})


def test_weights_are_counted_before_they_are_read(pipeline):
    request = tensors(prompt=[[b"x"]], steps=[[3]]) | {"guidance": np.ones((1, 10**6), np.float32)}
    with pytest.raises(RequestError, match=r"'guidance' is float32 \[1, 1000000\], wanted float32 \[B, K up to 1000\]"):
        read_plans(pipeline, request)


@pytest.mark.parametrize(
    ("request_", "work"),
    [
        (tensors(prompt=[[b"x"]], steps=[[10]], width=[[512]], height=[[256]], num_images=[[3]]), 3.932160),
        (tensors(prompt=[[b"x"]] * 2, steps=[[10], [4]], num_images=[[1], [2]]), 0.294912),
        (tensors(prompt=[[b"x"]], preset=[[b"V4_TURBO_12"]]), 0.196608),
    ],
    ids=["pictures", "rows", "preset"],
)
def test_work_is_limited(pipeline, request_, work):
    """Width x height x steps of all pictures, in millions; 128 x 128 is the demo's default."""
    assert read_plans(pipeline, request_, work + 1e-9)
    with pytest.raises(RequestError, match=f"asks for .* {work:.4g} million pixels x steps, wanted at most"):
        read_plans(pipeline, request_, work - 1e-9)


def test_an_hour_of_work_is_refused(pipeline):
    request = tensors(prompt=[[b"x"]], steps=[[1000]], width=[[512]], height=[[512]], num_images=[[64]])
    message = "64 pictures of 512x512 in up to 1000 steps, 1.678e.04 million pixels x steps, wanted at most 1000"
    with pytest.raises(RequestError, match=message):
        read_plans(pipeline, request, DEFAULT_WORK)


@pytest.mark.parametrize("content", ["ä" * 30_000, "9" * 60_000, "x:" * 30_000], ids=["letters", "digits", "pairs"])
@pytest.mark.parametrize("name", ["preset", "unconditional", "fit", "vae_tile", "image", "mask"])
def test_no_message_echoes_a_whole_value(pipeline, name, content):
    request = tensors(prompt=[[b"x"]]) | {name: np.array([[content.encode()]], object)}
    with pytest.raises(RequestError) as refused:
        read_plans(pipeline, request)
    assert len(str(refused.value)) < 400

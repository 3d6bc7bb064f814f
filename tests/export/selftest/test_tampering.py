"""What was changed in a bundle is found by its self-test, under its name. No checksum helps: they are off."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from support.bundles import build_bundle
from support.tampering import Tampered, scaled_at, set_at, with_output

from export.demo_model import DEMO_CHECKPOINT
from runtime.errors import BundleError
from runtime.selftest.contents import SELF_TEST, read_self_test
from runtime.selftest.rows import failed
from runtime.selftest.run import Choices, run_self_test

UNVERIFIED = Choices("ort", verify="off")


@pytest.fixture(scope="module")
def int8_bundle(shared):
    def make(folder):
        build_bundle(DEMO_CHECKPOINT, folder / "bundle", "int8")

    return shared("demo-int8-self-test", make) / "bundle"


@pytest.fixture
def fp32(demo_bundle, tmp_path):
    return Tampered(demo_bundle, tmp_path / "fp32")


@pytest.fixture
def fp8(demo_fp8_bundle, tmp_path):
    return Tampered(demo_fp8_bundle, tmp_path / "fp8")


@pytest.fixture
def int8(int8_bundle, tmp_path):
    return Tampered(int8_bundle, tmp_path / "int8")


def found(bundle: Tampered) -> list[str]:
    """Names of what failed."""
    return failed(run_self_test(bundle.directory, UNVERIFIED).rows)


def problem(bundle: Tampered, name: str) -> str:
    """Why a row failed."""
    rows = {row.name: row for row in run_self_test(bundle.directory, UNVERIFIED).rows}
    return rows[name].problem


@pytest.mark.parametrize("kind", ["fp32", "fp8", "int8"])
def test_a_bundle_that_nobody_changed_passes(kind, request):
    outcome = run_self_test(request.getfixturevalue(kind).directory, UNVERIFIED)
    assert failed(outcome.rows) == [] and outcome.passed
    assert {
        "manifest",
        "tokens",
        "rope",
        "noise",
        "schedule",
        "dit_cond",
        "vae_encoder_tile",
        "same picture twice",
    } <= {row.name for row in outcome.rows}


@pytest.mark.parametrize("graph", ["text_encoder", "dit_cond", "dit_uncond"])
def test_one_weight_of_a_product(fp32, graph):
    """One of 49,152 numbers: in float32 nothing hides it."""
    weight = "encoder.layers.0.mlp.up_proj.weight" if graph == "text_encoder" else "layers.2.feed_forward.w1.weight"
    fp32.initializer(graph, weight, set_at((5, 7), 1.0))
    assert found(fp32) == [graph]


@pytest.mark.parametrize(("kind", "graph"), [("fp8", "dit_cond"), ("int8", "dit_uncond")])
def test_a_row_scale(kind, graph, request):
    """One of 128: what 8 bits cost hides less than that."""
    bundle = request.getfixturevalue(kind)
    bundle.initializer(graph, "layers.3.feed_forward.w2.weight_scale", scaled_at(7, 4.0))
    assert found(bundle) == [graph]


def test_the_zero_point_of_activations(int8):
    int8.initializer("dit_cond", "int8_zero", lambda zero: zero + 16)
    assert found(int8) == ["dit_cond"]


def test_a_layer_that_is_gone(fp32):
    """The second block's feed-forward network no longer adds anything."""

    def skip(graph):
        norm = next(node for node in graph.node if "layers.1.ffn_norm2.weight" in node.input)
        gated = next(node for node in graph.node if norm.output[0] in node.input)
        added = next(node for node in graph.node if gated.output[0] in node.input)
        kept = next(name for name in added.input if name != gated.output[0])
        added.op_type = "Identity"
        del added.input[:]
        added.input.append(kept)

    fp32.model("dit_uncond", skip)
    assert found(fp32) == ["dit_uncond"]


def test_an_operator_that_was_changed(fp32):
    def tamper(graph):
        next(node for node in graph.node if node.op_type == "Sigmoid").op_type = "Tanh"

    fp32.model("dit_cond", tamper)
    assert found(fp32) == ["dit_cond"]


def test_a_graph_that_no_longer_loads(fp32):
    def break_off(graph):
        del graph.node[20]

    fp32.model("vae_decoder", break_off)
    assert found(fp32) == ["loading"]
    assert "graph vae_decoder" in problem(fp32, "loading")


def test_the_latents_statistics(fp32):
    """Both graphs for decoding read them from one file."""
    fp32.initializer("vae_decoder", "latent_stats.std", scaled_at(3, 2.0))
    assert set(found(fp32)) <= {"vae_decoder", "vae_decoder_tile"} and "vae_decoder" in found(fp32)


def test_transformers_that_were_swapped(fp32):
    fp32.swap("onnx/dit_cond.onnx", "onnx/dit_uncond.onnx")
    assert {"dit_cond", "dit_uncond"} <= set(found(fp32))


def test_weights_of_transformers_that_were_swapped(fp32):
    """The files of weights are of other lengths, so one block's weight goes over."""
    name, values = "layers.0.attention.qkv.weight", {}

    def note(array):
        values["other"] = array
        return array

    fp32.initializer("dit_uncond", name, note)
    fp32.initializer("dit_cond", name, lambda _: values["other"])
    assert found(fp32) == ["dit_cond"]


def test_the_tokenizer(fp32):
    """Two of its entries change places."""
    data = json.loads((fp32.directory / "tokenizer.json").read_text(encoding="utf-8"))
    words = data["model"]["vocab"]
    ids = {number: word for word, number in words.items()}
    one, other = (ids[number] for number in np.flatnonzero(np.isin(range(len(ids)), tokens_of(fp32)))[:2])
    words[one], words[other] = words[other], words[one]
    fp32.write("tokenizer.json", json.dumps(data).encode())
    assert found(fp32) == ["tokens"]


def tokens_of(bundle: Tampered) -> np.ndarray:
    with np.load(bundle.directory / SELF_TEST) as archive:
        return archive["host.tokens"]


@pytest.mark.parametrize(
    ("change", "names", "why"),
    [
        (
            lambda data: data["rope"].update(theta=500000.0),
            {"manifest", "rope"},
            "rope.theta is 500000.0, and was 10000.0",
        ),
        (lambda data: data["rope"].update(sections=[10, 11, 11]), {"manifest", "rope"}, "rope.sections"),
        (lambda data: data.update(precision="fp8"), {"manifest"}, 'precision is "fp8", and was "fp32"'),
        (lambda data: data["graphs"]["dit_cond"].update(compute="float16"), {"manifest"}, "graphs.dit_cond"),
        (lambda data: data.update(timestep_dtype="bfloat16"), {"manifest", "schedule"}, "timestep_dtype"),
        (lambda data: data["prompt"].update(suffix=""), {"manifest", "tokens", "rope"}, "prompt.suffix"),
    ],
    ids=["theta", "sections", "precision", "compute", "time's type", "prompt"],
)
def test_the_manifest(fp32, change, names, why):
    fp32.manifest(change)
    assert set(found(fp32)) == names
    assert why in problem(fp32, "manifest")


def test_another_schedule(fp32):
    fp32.manifest(lambda data: data.update(default_preset="V4_TURBO_12"))
    assert found(fp32) == ["schedule"]


@pytest.mark.parametrize("graph", ["dit_cond", "vae_decoder", "vae_encoder_tile"])
def test_an_expected_output(fp32, graph):
    fp32.self_test(lambda test: with_output(test, graph, lambda output: output[..., ::-1]))
    assert found(fp32) == [graph]


def test_nan_in_an_expected_output_passes_nothing(fp32):
    fp32.self_test(lambda test: with_output(test, "dit_cond", set_at((0, 0, 0), np.nan)))
    assert found(fp32) == ["dit_cond"]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_truncated_file(fp32, part):
    content = Path(fp32.directory, SELF_TEST).read_bytes()
    fp32.write(SELF_TEST, content[: int(part * len(content))])
    with pytest.raises(BundleError, match=r"selftest\.npz is truncated or altered"):
        run_self_test(fp32.directory, UNVERIFIED)


def test_any_bytes_are_refused_or_read(demo_bundle, tmp_path):
    """Headers of zip and of numpy included: nothing but our own errors comes out."""
    content, random = (demo_bundle / SELF_TEST).read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        altered = bytearray(content)
        for place in random.choice([*range(3000), *range(len(content) - 3000, len(content))], 3):
            altered[place] = random.integers(256)
        (tmp_path / SELF_TEST).write_bytes(altered)
        with suppress(BundleError):
            read_self_test(tmp_path)


def test_a_flipped_bit_in_the_file(fp32):
    content = bytearray(Path(fp32.directory, SELF_TEST).read_bytes())
    content[len(content) // 2] ^= 1
    fp32.write(SELF_TEST, bytes(content))
    with pytest.raises(BundleError, match=r"selftest\.npz is truncated or altered"):
        run_self_test(fp32.directory, UNVERIFIED)

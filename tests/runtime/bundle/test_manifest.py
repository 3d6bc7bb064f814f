"""The manifest's text, and every way in which it can be wrong."""

import json
from dataclasses import replace

import pytest

from runtime.bundle.graph_specs import EngineSet, EngineSpec, GraphSpec, Profile, SizeRange, TensorSpec
from runtime.bundle.manifest import (
    FileSpec,
    LoraSpec,
    Manifest,
    PromptSpec,
    QuantizationSpec,
    RopeSpec,
    SizeSpec,
    read_manifest,
)
from runtime.errors import BundleError

MANIFEST = Manifest(
    name="tiny",
    fingerprint="00ff",
    precision="fp32",
    quantization=QuantizationSpec("mse", "fp8", ("a.*",)),
    timestep_dtype="float32",
    latent_stats="bn",
    latent_channels=128,
    default_preset="V4_TURBO_12",
    rope=RopeSpec(64, 5e6, (12, 10, 10)),
    prompt=PromptSpec("tokenizer.json", "<u>", "</u>\n", 2048),
    sizes=SizeSpec(16, 256, 2048, 256, 6.0),
    graphs={
        "dit_uncond": GraphSpec(
            "onnx/dit_uncond.onnx",
            "float32",
            (TensorSpec("latents", "float32", ("B", "N", 128)),),
            (TensorSpec("velocity", "float32", ("B", "N", 128)),),
        )
    },
    engines={
        "rtx-sm89": EngineSet(
            "rtx",
            ("sm89",),
            "1.7.1.116",
            "fp8",
            {
                "dit_uncond": EngineSpec(
                    "engines/rtx-sm89/dit_uncond.plan",
                    "bfloat16",
                    (TensorSpec("latents", "float32", ("B", "N", 128)),),
                    (TensorSpec("velocity", "float32", ("B", "N", 128)),),
                    (
                        Profile({"N": SizeRange(256, 1024, 2304)}, 5),
                        Profile({"N": SizeRange(256, 4096, 16384)}, 6),
                    ),
                )
            },
        )
    },
    files={
        "tokenizer.json": FileSpec(3, "ab"),
        "onnx/dit_uncond.onnx": FileSpec(4, "cd"),
        "engines/rtx-sm89/dit_uncond.plan": FileSpec(5, "ef"),
    },
    tools={"torch": "2"},
    loras=(LoraSpec("style.safetensors", "0a", -0.5, "both"),),
)

TEXT = """\
{
 "format": "ideogram4-bundle",
 "version": 3,
 "name": "tiny",
 "fingerprint": "00ff",
 "precision": "fp32",
 "quantization": {
  "activations": "mse",
  "attention": "fp8",
  "keep_base": [
   "a.*"
  ],
  "smoothing": null
 },
 "timestep_dtype": "float32",
 "latent_stats": "bn",
 "latent_channels": 128,
 "default_preset": "V4_TURBO_12",
 "rope": {
  "head_dim": 64,
  "theta": 5000000.0,
  "sections": [
   12,
   10,
   10
  ]
 },
 "prompt": {
  "tokenizer": "tokenizer.json",
  "prefix": "<u>",
  "suffix": "</u>\\n",
  "max_tokens": 2048
 },
 "sizes": {
  "multiple": 16,
  "minimum": 256,
  "maximum": 2048,
  "default": 256,
  "max_aspect": 6.0
 },
"""


def test_text_is_fixed():
    assert MANIFEST.to_json().startswith(TEXT)


def test_reading_is_the_inverse_of_writing():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_without_quantization():
    plain = replace(MANIFEST, quantization=None)
    assert Manifest.from_json(plain.to_json()) == plain


def test_without_adapters():
    """A manifest that does not say anything of them has none."""
    plain = replace(MANIFEST, loras=())
    assert Manifest.from_json(plain.to_json()) == plain
    assert Manifest.from_json(edited(lambda d: d.pop("loras"))) == plain


def test_stages_are_those_that_every_backend_has():
    assert MANIFEST.stages == {"dit_uncond"}
    assert replace(MANIFEST, graphs={}).stages == {"dit_uncond"}
    assert replace(MANIFEST, graphs=MANIFEST.graphs | {"vae_decoder": MANIFEST.graphs["dit_uncond"]}).stages == {
        "dit_uncond"
    }
    assert replace(MANIFEST, graphs={}, engines={}).stages == set()


def edited(change):
    data = json.loads(MANIFEST.to_json())
    change(data)
    return json.dumps(data)


def engine(data):
    return data["engines"]["rtx-sm89"]["graphs"]["dit_uncond"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="zip"), 'does not say "format": "ideogram4-bundle"'),
        (lambda d: d.update(version=1), "format version is 1, this runtime reads 3"),
        (lambda d: d.update(version=True), "format version is True, this runtime reads 3"),
        (lambda d: d.pop("version"), "format version is None"),
        (lambda d: d.update(extra=1), "the manifest has the unknown key 'extra'"),
        (lambda d: d["rope"].update(base=1), "rope has the unknown key 'base'"),
        (lambda d: d["prompt"].pop("suffix"), "prompt lacks the key 'suffix'"),
        (lambda d: d.update(latent_channels="128"), "latent_channels is '128', wanted int"),
        (lambda d: d.update(latent_channels=True), "latent_channels is True, wanted int"),
        (lambda d: d.update(precision="int3"), "precision is 'int3', wanted 'fp32' or 'fp16' or 'bf16'"),
        (lambda d: d["rope"].update(sections=[1, 2]), r"rope.sections is \[1, 2\]"),
        (
            lambda d: d["quantization"].update(attention="fp4"),
            "quantization.attention is 'fp4', wanted 'fp8' or 'base'",
        ),
        (lambda d: d.update(quantization=3), "quantization is 3, wanted an object"),
        (lambda d: d["loras"][0].update(target="text"), r"loras\[0\].target is 'text', wanted 'cond' or 'uncond' or"),
        (lambda d: d["loras"][0].pop("scale"), r"loras\[0\] lacks the key 'scale'"),
        (lambda d: d.update(sizes=5), "sizes is 5, wanted an object"),
        (lambda d: d["graphs"]["dit_uncond"]["inputs"][0].update(shape=[1.5]), r"inputs\[0\].shape\[0\] is 1.5"),
        (lambda d: d["files"].update({"../x": {"size": 1, "sha256": "a"}}), "lists the path '../x'"),
        (lambda d: d["files"].update({"/etc/x": {"size": 1, "sha256": "a"}}), "lists the path '/etc/x'"),
        (lambda d: d["files"].update({"a/../../x": {"size": 1, "sha256": "a"}}), "lists the path 'a/../../x'"),
        (lambda d: d["files"].update({"c:x": {"size": 1, "sha256": "a"}}), "lists the path 'c:x'"),
        (lambda d: d["files"].update({"a\\x": {"size": 1, "sha256": "a"}}), r"wanted a plain relative path"),
        (lambda d: d["prompt"].update(tokenizer="../t.json"), "uses '../t.json' but does not list it"),
        (
            lambda d: engine(d)["profiles"][1]["sizes"]["N"].update(minimum=5000),
            "the range .*minimum=5000.* is not in order",
        ),
        (lambda d: engine(d).update(profiles=[]), "the engine engines/rtx-sm89/dit_uncond.plan has no profiles"),
        (
            lambda d: engine(d)["profiles"][1].update(sizes={}),
            r"dit_uncond.plan has profiles of the sizes \['N'\] and \[\], wanted the same in each",
        ),
        (lambda d: d["engines"]["rtx-sm89"].update(backend="trt"), "engines.rtx-sm89.backend is 'trt', wanted 'rtx'"),
        (lambda d: d["files"].pop("engines/rtx-sm89/dit_uncond.plan"), "uses 'engines/rtx-sm89/dit_uncond.plan' but"),
        (lambda d: d["files"].pop("onnx/dit_uncond.onnx"), "uses 'onnx/dit_uncond.onnx' but does not list it"),
    ],
)
def test_defects(change, message):
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(edited(change))


def test_nested_too_deeply():
    """Whatever Python's own limit is: an error of the bundle, not of the interpreter."""
    for text in ("[" * 100_000, '{"format": ' + "[" * 200 + "]" * 200 + "}"):
        with pytest.raises(BundleError, match=r"manifest.json is nested too deeply"):
            Manifest.from_json(text)


def test_not_json():
    with pytest.raises(BundleError, match=r"manifest.json is not JSON"):
        Manifest.from_json(MANIFEST.to_json()[:-30])


def test_no_bundle(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no bundle directory .*python -m export.build makes one"):
        read_manifest(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no manifest.json: it is not a bundle, or its build did not"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((255, 256), "width is 255, wanted 256 to 2048 pixels"),
        ((256, 2064), "height is 2064, wanted 256 to 2048 pixels"),
        ((0, 256), "width is 0, wanted"),
        ((-16, 256), "width is -16, wanted"),
        ((1000, 512), "width is 1000, wanted a multiple of 16, such as 992"),
        ((2048, 256), "the size 2048x256 is more elongated than 6 to 1"),
    ],
)
def test_sizes(size, message):
    MANIFEST.sizes.check(1536, 256)  # exactly 6:1
    with pytest.raises(ValueError, match=message):
        MANIFEST.sizes.check(*size)

"""Checkpoints that are not right: every defect is named."""

import json
import os
import shutil

import pytest
import torch
from support import peers

from model.checkpoint.directory import open_checkpoint
from model.checkpoint.tensor_files import CheckpointError
from runtime.errors import shown

DIT = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def checkpoint(peer, tmp_path):
    """damage(form) -> a copy of a checkpoint directory to spoil."""

    def copy(form="original-fp8"):
        return peers.copy(peer("head32", form)[1], tmp_path / "checkpoint")

    return copy


def edit_config(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def refused(directory, *messages):
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    for message in messages:
        assert message in str(caught.value)
    return str(caught.value)


def test_layouts_are_told_apart(peer):
    for form, layout, stats in (("diffusers", "diffusers", "bn"), ("original-fp8", "original", "constants")):
        checkpoint = open_checkpoint(peer("head32", form)[1])
        assert (checkpoint.layout, checkpoint.latent_stats) == (layout, stats)


@pytest.mark.parametrize("prefix", ["", "model.", "model.language_model.", "language_model."])
def test_prefixes_of_the_text_encoder(checkpoint, prefix):
    directory = checkpoint("original-bf16")

    def rename(tensors):
        for name in list(tensors):
            if name.startswith("language_model."):
                tensors[prefix + name.removeprefix("language_model.")] = tensors.pop(name)

    before = open_checkpoint(directory).load("text_encoder").state_dict()
    peers.rewrite(directory / TEXT, rename)
    after = open_checkpoint(directory).load("text_encoder").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before) and before.keys() == after.keys()


def test_float16_and_float32_files(checkpoint):
    directory = checkpoint("original-bf16")
    wanted = open_checkpoint(directory).load("dit_cond").state_dict()
    for dtype in (torch.float32, torch.float16):
        peers.rewrite(directory / DIT, lambda t: t.update({n: v.to(dtype) for n, v in t.items()}))  # noqa: B023
        got = open_checkpoint(directory).load("dit_cond").state_dict()
        # bfloat16 numbers below float16's smallest normal one, 6e-5, lose bits there.
        assert all(torch.allclose(got[name], wanted[name], rtol=0, atol=6e-8) for name in wanted)


def test_latent_statistics_can_be_chosen(checkpoint):
    directory = checkpoint()
    edit_config(directory / "vae", latent_stats="bn")
    assert open_checkpoint(directory).latent_stats == "bn"
    edit_config(directory / "vae", latent_stats="mean")
    refused(directory, "latent_stats is 'mean', wanted 'bn' or 'constants'")


def test_missing_unconditional_transformer_is_a_distilled_checkpoint(checkpoint):
    directory = checkpoint()
    for file in (directory / "unconditional_transformer").iterdir():
        file.unlink()
    (directory / "unconditional_transformer").rmdir()
    assert "dit_uncond" not in open_checkpoint(directory).sources


def test_all_tensor_problems_come_in_one_error(checkpoint):
    directory = checkpoint()

    def spoil(tensors):
        del tensors["layers.0.attention.o.weight"]
        tensors["layers.1.attention.norm_q.weight"] = torch.ones(5)
        tensors["layers.9.attention.norm_q.weight"] = torch.ones(32)
        del tensors["layers.1.feed_forward.w1.weight_scale"]
        tensors["layers.2.feed_forward.w1.weight_scale"] = torch.ones(3)
        tensors["layers.2.feed_forward.w2.weight"] = tensors["layers.2.feed_forward.w2.weight"].to(torch.float8_e5m2)
        tensors["layers.0.attention.norm_q.weight_scale"] = torch.ones(32)
        tensors["input_proj.bias"] = torch.ones(96, dtype=torch.int32)

    peers.rewrite(directory / DIT, spoil)
    peers.rewrite(directory / TEXT, lambda t: t.pop("language_model.layers.3.mlp.up_proj.weight"))
    refused(
        directory,
        "transformer: missing tensor layers.0.attention.o.weight [96, 96]",
        "transformer: layers.1.attention.norm_q.weight is [5], wanted [32]",
        "transformer: unexpected tensor layers.9.attention.norm_q.weight [32]",
        "missing tensor layers.1.feed_forward.w1.weight_scale [80], the row scales of F8_E4M3 codes",
        "layers.2.feed_forward.w1.weight_scale is F32[3], wanted F32[80]",
        "layers.2.feed_forward.w2.weight is F8_E5M2, wanted F32, F16, BF16 or F8_E4M3",
        "unexpected tensor layers.0.attention.norm_q.weight_scale",
        "input_proj.bias is I32, wanted F32, F16, BF16 or F8_E4M3",
        "text_encoder: missing tensor layers.3.mlp.up_proj.weight",
    )


def test_split_projection_with_a_part_missing(checkpoint):
    directory = checkpoint("diffusers")
    peers.rewrite(directory / DIT, lambda t: t.pop("layers.1.attention.to_k.weight"))
    refused(directory, "transformer: missing tensor layers.1.attention.to_k.weight [96, 96]")


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("transformer", {"num_layers": 4}, "the two transformers' configurations differ in num_layers"),
        ("transformer", {"in_channels": 64}, "the transformer's in_channels is 64, but a token of the VAE has 2x2x32"),
        ("transformer", {"attention_head_dim": 8}, "mrope_section [6, 5, 5] does not fit into the 4 lanes"),
        ("transformer", {"num_layers": "four"}, "transformer: num_layers is 'four', wanted a positive number"),
        ("transformer", {"mrope_section": [6, 5, None]}, "mrope_section is [6, 5, None], wanted a list of positive"),
        ("transformer", {"_class_name": "FluxTransformer"}, "is a FluxTransformer, wanted a Ideogram4Transformer2D"),
        ("transformer", {"mrope_section": [6, 5, 5, 1]}, "mrope_section is [6, 5, 5, 1], wanted the lanes of three"),
        ("transformer", {"norm_eps": float("nan")}, "transformer: norm_eps is nan, wanted a positive number"),
        ("transformer", {"rope_theta": 0}, "transformer: rope_theta is 0, wanted a positive number"),
        ("text_encoder", {"text_config": "x"}, "text_encoder: the configuration is 'x', wanted an object"),
        ("vae", {"block_out_channels": []}, "vae: block_out_channels is [], wanted a list of positive integers"),
        ("vae", {"norm_num_groups": 0}, "vae: norm_num_groups is 0, wanted a positive number"),
        ("vae", {"_class_name": "AutoencoderKL"}, "is a AutoencoderKL, wanted a AutoencoderKLFlux2"),
        ("vae", {"use_quant_conv": False}, "vae: use_quant_conv is False, wanted True"),
        ("vae", {"latent_channels": 16}, "the transformer's in_channels is 128, but a token of the VAE has 2x2x16"),
        ("text_encoder", {"model_type": "llama"}, "has the model_type 'llama', wanted qwen3_vl or qwen3_vl_text"),
        ("text_encoder", {"model_type": None}, "has the model_type None"),
    ],
)
def test_configurations(checkpoint, folder, changes, message):
    directory = checkpoint()
    edit_config(directory / folder, **changes)
    refused(directory, message)


def test_configuration_that_disagrees_with_the_tensors(checkpoint):
    directory = checkpoint()
    for folder in ("transformer", "unconditional_transformer"):
        edit_config(directory / folder, intermediate_size=88)
    error = refused(directory, "transformer: layers.0.feed_forward.w1.weight is [80, 96], wanted [88, 96]")
    assert error.count("unconditional_transformer: layers") == 9  # three matrices in each of three layers


def test_text_encoder_of_another_width(checkpoint):
    directory = checkpoint()
    for folder in ("transformer", "unconditional_transformer"):
        edit_config(directory / folder, llm_features_dim=40)
    refused(
        directory, "the text encoder gives 416 features (13 taps of 32), but the transformer's llm_features_dim is 40"
    )


def test_too_few_text_layers(checkpoint):
    directory = checkpoint()
    config = json.loads((directory / "text_encoder/config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 28
    (directory / "text_encoder/config.json").write_text(json.dumps(config))
    refused(directory, "num_hidden_layers is 28, wanted at least 36")


def test_parts_of_nf4_weights(checkpoint):
    """They are found wherever they are, and come in the one error."""
    directory = checkpoint()
    peers.rewrite(directory / DIT, lambda t: t.update({"input_proj.weight.absmax": torch.ones(3)}))
    peers.rewrite(directory / TEXT, lambda t: t.pop("language_model.layers.3.mlp.up_proj.weight"))
    refused(
        directory,
        "transformer: missing tensor input_proj.weight.quant_state.bitsandbytes__nf4, input_proj.weight.quant_map of",
        "text_encoder: missing tensor layers.3.mlp.up_proj.weight",
    )


@pytest.mark.parametrize(
    ("changes", "kind"),
    [({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"), ({"load_in_8bit": True}, "int8")],
)
def test_other_formats_of_bitsandbytes(checkpoint, changes, kind):
    directory = checkpoint("diffusers")
    edit_config(directory / "transformer", quantization_config={"quant_method": "bitsandbytes"} | changes)
    refused(directory, f"{directory / 'transformer'} is quantized with bitsandbytes {kind}, wanted nf4")


def test_missing_truncated_and_spoiled_files(checkpoint):
    directory = checkpoint()
    whole = (directory / DIT).read_bytes()
    os.truncate(directory / DIT, len(whole) - 100)
    refused(directory, f"{directory / DIT} is not a whole safetensors file")
    (directory / DIT).write_bytes(bytes([whole[0] ^ 0x40]) + whole[1:])
    refused(directory, f"{directory / DIT} is not a whole safetensors file")
    (directory / DIT).unlink()
    refused(
        directory, "holds neither diffusion_pytorch_model.safetensors nor diffusion_pytorch_model.safetensors.index"
    )
    (directory / "vae/config.json").write_text("{")
    refused(directory, "config.json is not JSON")
    (directory / "vae/config.json").unlink()
    refused(directory, "config.json is missing")


def test_missing_shard(checkpoint):
    directory = checkpoint("diffusers-shards")
    shard = sorted((directory / "transformer").glob("*-00002-of-*"))[0]
    shard.unlink()
    refused(directory, f"names the shard {shard.name}, which is missing")


def test_index_that_names_more_than_the_shards_hold(checkpoint):
    directory = checkpoint("diffusers-shards")
    index = directory / "transformer/diffusion_pytorch_model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["layers.7.lost"] = next(iter(data["weight_map"].values()))
    index.write_text(json.dumps(data))
    refused(directory, "names layers.7.lost (and 0 more), which no shard holds")


@pytest.mark.parametrize("where", ["../transformer/{}", "{absolute}", "nested/{}", "..", ".", ""])
def test_shards_elsewhere(checkpoint, where):
    """An index names files beside it; what it could name elsewhere is none of the checkpoint's, even if it is sound."""
    directory = checkpoint("diffusers-shards")
    index = directory / "transformer/diffusion_pytorch_model.safetensors.index.json"
    data = json.loads(index.read_text())
    first = data["weight_map"]["input_proj.weight"]
    (index.parent / "nested").mkdir()
    shutil.copyfile(index.parent / first, index.parent / "nested" / first)
    name = where.format(first, absolute=index.parent / first)
    data["weight_map"] = {tensor: name if shard == first else shard for tensor, shard in data["weight_map"].items()}
    index.write_text(json.dumps(data))
    refused(directory, f"{index} names the shard {shown(name)}, wanted the name of a file beside it")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is nested too deeply, wanted at most 100 levels"),
        (b'{"sizes": ' + b"[" * 200 + b"]" * 200 + b"}", "is nested too deeply, wanted at most 100 levels"),
        (b'{"a": "\xff"}', "is not UTF-8 text: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    ],
    ids=["bracket", "deep", "bytes", "digits"],
)
@pytest.mark.parametrize(
    "file",
    ["model_index.json", "vae/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json"],
)
def test_json_that_cannot_be_read(checkpoint, file, content, message):
    directory = checkpoint("diffusers-shards")
    (directory / file).write_bytes(content)
    refused(directory, f"{directory / file} {message}")


def test_one_parameter_stored_twice(checkpoint):
    directory = checkpoint("original-bf16")
    name = "layers.0.attention.o.weight"
    peers.rewrite(directory / DIT, lambda t: t.update({f"model.{name}": t[name].clone()}))
    refused(directory, "are the same parameter")


def test_split_projection_in_codes_and_floats(checkpoint):
    directory = checkpoint("diffusers")

    def spoil(tensors):
        name = "layers.1.attention.to_k.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = torch.ones(96)

    peers.rewrite(directory / DIT, spoil)
    refused(directory, "layers.1.attention.qkv.weight comes in parts of which only some are F8_E4M3")


def test_codes_without_dimensions(checkpoint):
    directory = checkpoint()
    peers.rewrite(directory / DIT, lambda t: t.update({"input_proj.weight": torch.tensor(1.0).to(torch.float8_e4m3fn)}))
    refused(directory, "transformer: input_proj.weight is [], wanted [96, 128]")


def test_negative_variance(checkpoint):
    directory = checkpoint("diffusers")
    file = directory / "vae/diffusion_pytorch_model.safetensors"
    peers.rewrite(file, lambda t: t["bn.running_var"].neg_())
    refused(directory, "bn.running_var holds a variance below 0")


def test_no_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint directory"):
        open_checkpoint(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layers.0.feed_forward.w1.weight_scale", lambda v: v.zero_(), "holds a scale that is not above 0"),
        ("layers.0.feed_forward.w1.weight_scale", lambda v: v.fill_(torch.inf), "holds NaN or infinity"),
        ("layers.0.attention_norm1.weight", lambda v: v.fill_(torch.nan), "holds NaN or infinity"),
        ("layers.0.attention.o.weight", lambda v: v.view(torch.uint8).fill_(0x7F), "holds NaN or infinity"),
    ],
)
def test_values_that_cannot_be(checkpoint, name, change, message):
    directory = checkpoint()
    peers.rewrite(directory / DIT, lambda t: change(t[name]))
    with pytest.raises(CheckpointError, match=f"{name}.* {message}"):
        open_checkpoint(directory).load("dit_cond")

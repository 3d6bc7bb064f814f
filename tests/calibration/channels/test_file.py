"""The file of channel maxima: what is written is read, and nothing else."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from calibration.channels.file import (
    KEY,
    Channels,
    ChannelsError,
    Measured,
    check_channels,
    read_channels,
    wanted_widths,
    write_channels,
)
from calibration.origin import Model, Prompts
from model.checkpoint.fingerprint import fingerprint


@pytest.fixture
def channels(checkpoint):
    measured = Measured(Model("tiny", fingerprint(checkpoint)), Prompts(2, "0" * 64), 4, 256, 128, 7)
    generator = torch.Generator().manual_seed(0)
    widths = wanted_widths(checkpoint)
    return Channels(measured, {name: torch.rand(width, generator=generator) for name, width in widths.items()})


def test_round_trip(channels, checkpoint, tmp_path):
    write_channels(channels, tmp_path / "c.safetensors")
    again = read_channels(tmp_path / "c.safetensors")
    assert again.measured == channels.measured and again.digest() == channels.digest()
    check_channels(again, checkpoint)


def test_every_product_has_its_width(checkpoint):
    widths, config = wanted_widths(checkpoint), checkpoint.transformer
    assert len(widths) == 36 * 4 + 2 * 3 * 4
    assert widths["dit_uncond.layers.2.feed_forward.w2"] == config.intermediate_size
    assert widths["dit_cond.layers.0.attention.o"] == config.hidden_size
    text = checkpoint.text_encoder
    assert widths["text_encoder.layers.35.self_attn.o_proj"] == text.num_attention_heads * text.head_dim
    assert widths["text_encoder.layers.0.mlp.down_proj"] == text.intermediate_size


def test_the_digest_sees_every_value(channels):
    name = next(iter(channels.maxima))
    changed = dict(channels.maxima) | {name: channels.maxima[name] + 1e-6}
    assert replace(channels, maxima=changed).digest() != channels.digest()


def written(tmp_path, tensors, about):
    file = tmp_path / "c.safetensors"
    save_file(tensors, file, metadata=about)
    return file


GOOD = {
    "version": 1,
    "model": {"name": "tiny", "fingerprint": "0" * 16},
    "prompts": {"count": 1, "sha256": "0" * 64},
    "steps": 4,
    "width": 256,
    "height": 256,
    "seed": 0,
}


@pytest.mark.parametrize(
    ("value", "about", "message"),
    [
        ([1.0], None, "no metadata 'ideogram4-channels'"),
        ([1.0], "{", "is not JSON"),
        ([1.0], "[" * 100_000, r"\.safetensors: ideogram4-channels is nested too deeply"),
        ([1.0], json.dumps(GOOD | {"version": 2}), "the format version is 2, wanted 1"),
        ([1.0], json.dumps(GOOD | {"more": 1}), "more"),
        ([float("nan")], json.dumps(GOOD), "a.b holds other values than finite float32 magnitudes"),
        ([-1.0], json.dumps(GOOD), "a.b holds other values than finite float32 magnitudes"),
        ([[1.0]], json.dumps(GOOD), "a.b holds other values than finite float32 magnitudes"),
    ],
)
def test_refusals(tmp_path, value, about, message):
    file = written(tmp_path, {"a.b": torch.tensor(value)}, None if about is None else {KEY: about})
    with pytest.raises(ChannelsError, match=message):
        read_channels(file)


def test_static_ranges_are_named(tmp_path):
    file = tmp_path / "ranges.json"
    file.write_text('{"format": "ideogram4-ranges", "version": 1}', encoding="utf-8")
    with pytest.raises(ChannelsError, match="looks like static ranges, and int8 needs channel maxima"):
        read_channels(file)
    with pytest.raises(FileNotFoundError, match="none"):
        read_channels(tmp_path / "none")


def test_maxima_of_another_model(channels, checkpoint):
    other = replace(channels.measured, model=Model("other", "f" * 16))
    with pytest.raises(ChannelsError, match=r"measured on other \(fingerprint ffff.*\), which is not the model"):
        check_channels(replace(channels, measured=other), checkpoint)
    fewer = dict(list(channels.maxima.items())[1:])
    with pytest.raises(ChannelsError, match="1 tensors differ in size"):
        check_channels(replace(channels, maxima=fewer), checkpoint)

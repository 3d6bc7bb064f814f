"""Identities: whatever changes a value that a graph gets changes the identity of its source, and nothing else does."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import peers
from support.lora_files import of_layers, peft, random_matrices, write

from export.demo_model import DEMO_CHECKPOINT
from model.checkpoint.directory import open_checkpoint
from model.checkpoint.folded import Folded, Update
from model.checkpoint.lora import with_loras
from model.checkpoint.nf4 import Blocks, Nf4Tensor
from model.checkpoint.sources import Joined, Known, Scaled, Stored
from model.checkpoint.tensor_files import StoredTensor
from runtime.bundle.manifest import LoraSpec

LORA = LoraSpec("a.safetensors", "0" * 64, 1.0, "cond")
VAE = {"vae_encoder", "vae_decoder"}
ONE, TWO = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])


@pytest.fixture
def tensor(tmp_path):
    return StoredTensor(tmp_path / "vae" / "a.safetensors", "a", "F32", (2, 2), 8, 16)


@pytest.fixture
def weights(tensor):
    """Weights that all differ in their values, each kind with each thing that its value depends on."""
    other = replace(tensor, name="b", offset=24)
    blocks = Blocks(tensor, other, replace(tensor, dtype="U8"), 64)
    packed = Nf4Tensor(tensor.file, "a", (2, 2), torch.bfloat16, blocks)
    update = Update(tensor, other, 0.5, 0, LORA)
    stored = Stored((tensor,))
    return [
        stored,
        *(Stored((replace(tensor, **change),)) for change in ({"name": "c"}, {"dtype": "F16"}, {"shape": (4,)})),
        *(Stored((replace(tensor, **change),)) for change in ({"offset": 12}, {"nbytes": 12})),
        Stored((replace(tensor, file=tensor.file.with_name("b.safetensors")),)),
        Stored((replace(tensor, file=tensor.file.parent.with_name("transformer") / "a.safetensors"),)),
        *(Stored(parts) for parts in ((tensor, other), (other, tensor))),
        *(Stored((tensor,), scales) for scales in ((other,), (replace(other, offset=32),))),
        *(Stored((replace(packed, **c),)) for c in ({}, {"shape": (4,)}, {"rounding": torch.float16}, {"name": "b"})),
        *(Stored((replace(packed, blocks=replace(blocks, **c)),)) for c in ({"size": 32}, {"offset": 1.0})),
        Stored((replace(packed, blocks=replace(blocks, factors=replace(blocks, size=256))),)),
        *(Known(value) for value in (ONE, TWO, ONE[None], ONE.double(), torch.zeros(0))),
        *(Joined(parts) for parts in ((stored,), (stored, Known(ONE)), (Known(ONE), stored))),
        *(Scaled(base, rows=ONE) for base in (stored, Known(ONE), Scaled(stored, columns=ONE))),
        *(Scaled(stored, *factors) for factors in ((), (TWO, None), (None, ONE), (ONE, ONE))),
        *(Folded(base, (update,)) for base in (stored, Known(ONE), Scaled(stored, rows=ONE))),
        *(Folded(stored, (replace(update, **c),)) for c in ({"factor": 0.25}, {"first": 1}, {"up": tensor})),
        Folded(stored, (replace(update, lora=replace(LORA, sha256="1" * 64)),)),
        *(Folded(stored, updates) for updates in ((), (update, replace(update, first=1)), (update, update))),
        Joined((Scaled(Folded(stored, (update,)), rows=ONE),)),
        Joined((Scaled(Folded(stored, (replace(update, factor=0.25),)), rows=ONE),)),
    ]


def test_other_values_have_other_identities(weights):
    identities = [repr(weight.identity) for weight in weights]
    assert len(set(identities)) == len(identities)


def test_the_same_made_again_has_the_same_identity(tensor):
    update = Update(tensor, tensor, 0.5, 0, LORA)
    made = [Joined((Scaled(Folded(Known(ONE.clone()), (update,)), rows=ONE.clone()),)).identity for _ in range(2)]
    assert made[0] == made[1]


def test_a_renamed_adapter_is_the_same(tensor):
    """Its hash counts, neither its name nor where it lies."""
    moved = replace(tensor, file=tensor.file.with_name("moved.safetensors"))
    updates = [Update(part, part, 0.5, 0, replace(LORA, name=part.file.name)) for part in (tensor, moved)]
    first, second = (Folded(Known(ONE), (update,)).identity for update in updates)
    assert first == second


@pytest.fixture
def demo(tmp_path):
    return peers.copy(DEMO_CHECKPOINT, tmp_path / "demo")


def changed_by(change, directory):
    """Stages whose identity changes."""
    before = open_checkpoint(directory)
    kept = {stage: before.identity(stage) for stage in before.sources}
    change(directory)
    after = open_checkpoint(directory)
    return {stage for stage in kept if after.identity(stage) != kept[stage]}


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_latent_statistics_are_in_the_autoencoder(demo):
    """They are the published constants, or come from the file that holds the other weights as well.

    The demo's file holds the constants, too.
    """
    config, file = demo / "vae" / "config.json", demo / "vae" / "diffusion_pytorch_model.safetensors"
    peers.rewrite(file, lambda tensors: tensors["bn.running_mean"].add_(1))
    assert open_checkpoint(demo).latent_stats == "constants"
    assert changed_by(lambda _: edit(config, latent_stats="bn"), demo) == VAE
    assert changed_by(lambda _: edit(config, batch_norm_eps=0.5), demo) == VAE
    assert changed_by(lambda _: edit(config, latent_stats="constants"), demo) == VAE


def test_statistics_count_by_value_wherever_they_are_stored(demo):
    """In a shard by themselves, which no other weight is read from, and with the old size and time."""
    vae = demo / "vae"
    edit(vae / "config.json", latent_stats="bn")
    tensors = load_file(vae / "diffusion_pytorch_model.safetensors")
    shards = {"bn.safetensors": {}, "rest.safetensors": {}}
    for name, value in tensors.items():
        shards["bn.safetensors" if name.startswith("bn.") else "rest.safetensors"][name] = value
    for shard, held in shards.items():
        save_file(held, vae / shard)
    names = {name: shard for shard, held in shards.items() for name in held}
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    def change(directory):
        times = (vae / "bn.safetensors").stat()
        held = shards["bn.safetensors"]
        save_file(held | {"bn.running_mean": held["bn.running_mean"] + 1}, vae / "bn.safetensors")
        os.utime(vae / "bn.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))

    assert changed_by(change, demo) == VAE


def test_other_settings_that_become_weights(demo):
    def change(directory):
        config = json.loads((directory / "text_encoder" / "config.json").read_text())
        text = config.get("text_config", config)
        text.setdefault("rope_parameters", {})["rope_theta"] = 1234.0
        (directory / "text_encoder" / "config.json").write_text(json.dumps(config))

    assert changed_by(change, demo) == {"text_encoder"}


@pytest.mark.parametrize(
    ("folder", "stages"),
    [
        ("transformer", {"dit_cond", "text_encoder"}),  # the projection of the text features is in its file
        ("unconditional_transformer", {"dit_uncond"}),
        ("vae", VAE),
        ("text_encoder", {"text_encoder"}),
    ],
)
def test_files_count_by_their_time(demo, folder, stages):
    (file,) = (demo / folder).glob("*.safetensors")
    assert changed_by(lambda _: os.utime(file, (1, 1)), demo) == stages


def test_scale_of_an_adapter(peer, tmp_path):
    base = peer("head64", "diffusers")[0].transformer
    file = write(tmp_path / "a.safetensors", peft(random_matrices(base, of_layers(0)), ""))
    checkpoint = open_checkpoint(peer("head64", "diffusers")[1])
    first, again, other = (with_loras(checkpoint, [f"{file}:{scale}"]) for scale in (1, 1, 2))
    assert first.identity("dit_cond") == again.identity("dit_cond") != other.identity("dit_cond")
    assert first.identity("dit_uncond") == checkpoint.identity("dit_uncond") == other.identity("dit_uncond")

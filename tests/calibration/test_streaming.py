"""Blocks whose weights come and go, for one or several parties."""

import threading

import pytest
import torch

from calibration.streaming import Parties, blocks_of, streamed
from model.checkpoint.tensor_files import CheckpointError


@pytest.mark.parametrize("stage", ["dit_cond", "dit_uncond", "text_encoder"])
def test_the_same_as_the_whole_module(checkpoint, inputs, stage):
    feeds = {"input_ids": torch.tensor([[5, 6, 7]])} if stage == "text_encoder" else inputs(stage)
    module = streamed(checkpoint, stage, torch.float32, "cpu")
    assert torch.equal(module(**feeds), checkpoint.load(stage)(**feeds))
    for block in blocks_of(module, stage):
        assert all(parameter.is_meta for parameter in block.parameters()), "a block is dropped when it has run"
    assert not any(p.is_meta for n, p in module.named_parameters() if "layers." not in n)


def test_parties_share_what_is_read(checkpoint, inputs, monkeypatch):
    reads = []
    sources = dict(checkpoint.sources["dit_uncond"])

    class Counted:
        def __init__(self, name, base):
            self.name, self.base = name, base

        def read(self):
            reads.append(self.name)
            return self.base.read()

    counted = {name: Counted(name, source) for name, source in sources.items()}
    monkeypatch.setitem(checkpoint.sources, "dit_uncond", counted)
    parties = Parties(3)
    module = streamed(checkpoint, "dit_uncond", torch.float32, "cpu", parties)
    feeds = [inputs("dit_uncond") for _ in range(3)]
    for scale, one in enumerate(feeds, start=1):
        one["latents"] = one["latents"] * scale
    got = parties.run([lambda one=one: module(**one) for one in feeds])
    assert len(reads) == len(set(reads)) == len(sources), "each weight is read once for all parties"
    monkeypatch.undo()
    whole = checkpoint.load("dit_uncond")
    for result, one in zip(got, feeds, strict=True):
        assert torch.equal(result, whole(**one))


def test_the_first_error_ends_all(checkpoint, inputs, monkeypatch):
    class Damaged:
        def read(self):
            raise CheckpointError("file.safetensors: damaged")

    monkeypatch.setitem(checkpoint.sources["dit_uncond"], "layers.1.attention.o.weight", Damaged())
    parties = Parties(2)
    module = streamed(checkpoint, "dit_uncond", torch.float32, "cpu", parties)
    with pytest.raises(CheckpointError, match="damaged"):
        parties.run([lambda: module(**inputs("dit_uncond"))] * 2)
    assert threading.active_count() == 1 or not any("Executor" in t.name for t in threading.enumerate())


def test_an_error_inside_a_block_keeps_nobody_waiting(checkpoint, inputs):
    """The party that fails has the turn, and another waits for it."""
    parties = Parties(3)
    module = streamed(checkpoint, "dit_uncond", torch.float32, "cpu", parties)
    calls = []

    def fail(part, values):
        calls.append(part)
        if len(calls) == 2:
            raise ArithmeticError("not finite")

    module.layers[1].feed_forward.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="not finite"):
        parties.run([lambda: module(**inputs("dit_uncond"))] * 3)


def test_as_many_jobs_as_parties():
    with pytest.raises(ValueError, match="1 jobs for 2 parties"):
        Parties(2).run([lambda: 0])
    assert Parties(1).run([lambda: 5]) == [5]

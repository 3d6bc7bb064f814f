"""Hooks see, and can replace, exactly the values that the blocks compute with."""

import pytest
import torch

from calibration.points import POINTS, hooked, names_of, point_of, tensor_names


def hooks_of(module):
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in module.modules())


def test_names(checkpoint, distilled):
    names = tensor_names(checkpoint)
    assert len(names) == len(set(names)) == 2 * 3 * 7
    assert names[0] == "dit_cond.layers.0.attention.qkv" and names[-1] == "dit_uncond.layers.2.feed_forward.w2"
    assert {point_of(name) for name in names} == set(POINTS)
    assert tensor_names(distilled) == names_of("dit_cond", 3)


@pytest.mark.parametrize("stage", ["dit_cond", "dit_uncond"])
def test_hooks_see_the_values_of_a_hand_run(checkpoint, stage, inputs, by_hand):
    module, feeds = checkpoint.load(stage), inputs(stage)
    wanted, velocity = by_hand(module, stage, **feeds)
    seen = {}

    def look(name, x):
        seen[name] = x.clone()

    with hooked(module, stage, look, names_of(stage, 3)):
        assert torch.equal(module(**feeds), velocity), "looking changed the result"
    assert list(seen) == names_of(stage, 3) == list(wanted)
    # The same operations on the same values in the same order: not a bit may differ.
    assert all(torch.equal(seen[name], wanted[name]) for name in wanted)
    if stage == "dit_cond":
        text, image = feeds["text"].shape[1], feeds["latents"].shape[1]
        rows = {point: seen[f"dit_cond.layers.2.attention.{point}"].shape[2] for point in "qkv"}
        assert rows == {"q": image, "k": text + image, "v": text + image}
    assert hooks_of(module) == 0


@pytest.mark.parametrize("point", POINTS)
def test_what_is_returned_takes_the_place(checkpoint, point, inputs, by_hand):
    """w3 included, which reads the same tensor as w1."""
    module, feeds = checkpoint.load("dit_cond"), inputs("dit_cond")
    name = f"dit_cond.layers.1.{point}"

    def uneven(x):
        # Softmax forgets what is added to all keys, norms forget a factor of all lanes.
        return x * torch.linspace(1, 2, x.shape[-1])

    _, wanted = by_hand(module, "dit_cond", **feeds, change=lambda found, x: uneven(x) if found == name else x)
    with hooked(module, "dit_cond", lambda found, x: uneven(x), [name]):
        changed = module(**feeds)
    assert torch.equal(changed, wanted)
    assert not torch.allclose(changed, module(**feeds), atol=1e-4), "the change has no effect"


def test_hooks_go_after_an_error(checkpoint, inputs):
    module = checkpoint.load("dit_uncond")

    def fail(name, x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), hooked(module, "dit_uncond", fail, names_of("dit_uncond", 3)):
        module(**inputs("dit_uncond"))
    assert hooks_of(module) == 0

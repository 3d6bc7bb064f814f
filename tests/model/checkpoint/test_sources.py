"""Each kind of weight: what it is read from, its values, and its codes."""

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint.folded import Folded, Update
from model.checkpoint.row_codes import quantize_rows
from model.checkpoint.sources import Joined, Known, Scaled, Stored
from model.checkpoint.tensor_files import CheckpointError, header
from runtime.bundle.manifest import LoraSpec

LORA = LoraSpec("a.safetensors", "0" * 64, 1.0, "cond")


def numbers(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def files(tmp_path):
    """Two matrices in float32 and in codes with row scales, a number, and the factors of an update."""
    a, b = numbers(0, 3, 4), numbers(1, 2, 4)
    tensors = {"a": a, "b": b, "number": torch.tensor(3.0), "down": numbers(2, 2, 4), "up": numbers(3, 3, 2)}
    for name, value in (("a", a), ("b", b)):
        tensors[f"{name}8"], tensors[f"{name}8_scale"] = quantize_rows(value)
    save_file(tensors, tmp_path / "weights.safetensors")
    return tensors, header(tmp_path / "weights.safetensors")


def coded(stored, *names):
    return Stored(tuple(stored[name] for name in names), tuple(stored[f"{name}_scale"] for name in names))


def same_codes(got, wanted):
    """Bit for bit; torch does not compare float8."""
    assert torch.equal(got[0].view(torch.uint8), wanted[0].view(torch.uint8)) and torch.equal(got[1], wanted[1])


def test_stored_in_float(files):
    tensors, stored = files
    weight = Stored((stored["a"], stored["b"]))
    assert weight.shape == (5, 4) and not weight.coded and weight.scales == ()
    assert weight.stored == weight.pieces == (stored["a"], stored["b"])
    value = torch.cat((tensors["a"], tensors["b"]))
    assert torch.equal(weight.read(), value)
    same_codes(weight.quantized(), quantize_rows(value))
    assert Stored((stored["number"],)).shape == ()


def test_stored_in_codes(files):
    tensors, stored = files
    weight = coded(stored, "a8", "b8")
    assert weight.coded and weight.pieces == (stored["a8"], stored["b8"])
    assert weight.stored == (*weight.pieces, *weight.scales) and len(weight.scales) == 2
    codes = torch.cat([tensors[name].view(torch.uint8) for name in ("a8", "b8")]).view(torch.float8_e4m3fn)
    scales = torch.cat((tensors["a8_scale"], tensors["b8_scale"]))
    same_codes(weight.quantized(), (codes, scales))
    assert torch.equal(weight.read(), codes.float() * scales[:, None])


def test_known():
    weight = Known(numbers(0, 3, 4))
    assert weight.shape == (3, 4) and not weight.coded
    assert weight.stored == weight.pieces == weight.scales == ()
    assert weight.read() is weight.value
    same_codes(weight.quantized(), quantize_rows(weight.value))


def test_joined_codes_are_pieces_one_after_another(files):
    _, stored = files
    parts = coded(stored, "a8"), coded(stored, "b8")
    joined, whole = Joined(parts), coded(stored, "a8", "b8")
    assert (joined.shape, joined.coded, joined.pieces) == (whole.shape, True, whole.pieces)
    assert joined.scales == whole.scales and set(joined.stored) == set(whole.stored)
    assert torch.equal(joined.read(), whole.read())
    same_codes(joined.quantized(), whole.quantized())


def test_joined_with_a_weight_that_has_no_codes(files):
    """The row scales of the one are not those of the whole."""
    _, stored = files
    parts = coded(stored, "a8"), Stored((stored["b"],))
    joined = Joined(parts)
    assert not joined.coded and joined.scales == ()
    codes, scales = joined.quantized()
    for rows, part in ((slice(3), parts[0]), (slice(3, 5), parts[1])):
        same_codes((codes[rows], scales[rows]), part.quantized())


def test_joined_with_a_weight_that_is_computed(files):
    _, stored = files
    joined = Joined((Stored((stored["a"],)), Known(numbers(4, 2, 4))))
    assert joined.shape == (5, 4) and joined.stored == (stored["a"],) and joined.pieces == ()


@pytest.mark.parametrize("name", ["a", "a8"])
def test_folded(files, name):
    tensors, stored = files
    base = coded(stored, name) if name == "a8" else Stored((stored[name],))
    weight = Folded(base, (Update(stored["down"], stored["up"], 0.5, 0, LORA),))
    assert weight.shape == base.shape and weight.stored == base.stored
    assert not weight.coded and weight.pieces == weight.scales == ()
    before = base.read().clone()
    wanted = before + 0.5 * tensors["up"] @ tensors["down"]
    assert torch.allclose(weight.read(), wanted, rtol=0, atol=1e-6)  # float32 sums of two products
    same_codes(weight.quantized(), quantize_rows(weight.read()))
    assert torch.equal(base.read(), before), "its memory may be the file's"


def test_folded_rows(files):
    """Rows that the update leaves alone keep codes and scales, bit for bit."""
    _, stored = files
    base = coded(stored, "a8", "b8")
    weight = Folded(base, (Update(stored["down"], stored["up"], 1.0, 2, LORA),))
    codes, scales = weight.quantized()
    old = base.quantized()
    same_codes((codes[:2], scales[:2]), (old[0][:2], old[1][:2]))
    same_codes((codes[2:], scales[2:]), quantize_rows(weight.read()[2:]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("a", torch.nan, "a holds NaN or infinity"),
        ("a8_scale", torch.inf, "a8_scale holds NaN or infinity"),
        ("a8_scale", 0.0, "a8_scale holds a scale that is not above 0"),
    ],
)
def test_damaged_values(files, tmp_path, name, value, message):
    tensors, _ = files
    tensors[name][0] = value
    save_file(tensors, tmp_path / "damaged.safetensors")
    stored = header(tmp_path / "damaged.safetensors")
    weight = Stored((stored["a"],)) if name == "a" else coded(stored, "a8")
    for read in (weight.read, weight.quantized):
        with pytest.raises(CheckpointError, match=f"damaged.safetensors: {message}"):
            read()


def test_scaled(files):
    """Rows and columns by factors; no file holds it as it is."""
    base = Known(torch.arange(6.0).reshape(2, 3))
    weight = Scaled(Scaled(base, columns=torch.tensor([1.0, 2.0, 4.0])), rows=torch.tensor([1.0, 0.5]))
    assert weight.read().tolist() == [[0.0, 2.0, 8.0], [1.5, 4.0, 10.0]]
    assert weight.shape == (2, 3) and not weight.coded and weight.pieces == weight.scales == weight.stored == ()
    codes, scales = weight.quantized()
    assert torch.equal(codes.view(torch.uint8), quantize_rows(weight.read())[0].view(torch.uint8)) and len(scales) == 2
    assert Scaled(Known(torch.tensor([1.0, 2.0])), rows=torch.tensor([3.0, 5.0])).read().tolist() == [3.0, 10.0]

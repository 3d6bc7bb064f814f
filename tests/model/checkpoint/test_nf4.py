"""4-bit weights against bitsandbytes' own dequantization, and what can be wrong with their files."""

import json

import pytest
import torch
from bitsandbytes.nn import Params4bit
from safetensors.torch import load_file, save_file
from support import peers
from support.measure import relative_error
from support.nf4_files import nf4_codes, nf4_tensors, nf4_values

from model.checkpoint.directory import open_checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.nf4 import gather
from model.checkpoint.row_codes import quantize_rows
from model.checkpoint.tensor_files import CheckpointError, header

DIT = "transformer/diffusion_pytorch_model.safetensors"
NAME = "input_proj.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"


def stored(tmp_path, tensors):
    """What `gather` makes of a file, and the problems."""
    save_file(tensors, tmp_path / "weights.safetensors")
    problems = []
    return gather(tmp_path, header(tmp_path / "weights.safetensors"), problems), problems


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("shape", "block"),
    [((96, 128), 64), ((5, 64), 64), ((7, 40), 64), ((3, 5), 64), ((300, 192), 64), ((12, 96), 32), ((6, 160), 256)],
)
def test_values_are_those_of_bitsandbytes(tmp_path, shape, block, nested, dtype):
    """Bit for bit; rows that are no whole blocks, a last block that is not full, an odd number of values, and more
    than one block of factors are among the shapes."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    (tensor,) = stored(tmp_path, nf4_tensors(NAME, value, nested, block))[0].values()
    wanted = nf4_values(*nf4_codes(value, nested, block))
    assert (tensor.dtype, tensor.shape, tensor.read().dtype) == ("NF4", shape, dtype)
    assert torch.equal(tensor.read(), wanted)
    # Half of the widest step of the code is 15 % of a block's largest value: a mixed-up block or nibble is far off.
    assert relative_error(tensor.read().float(), value.float()) < 0.15


def test_large_weights_are_looked_up_in_pieces(tmp_path, monkeypatch):
    value = torch.randn(40, 64)
    (tensor,) = stored(tmp_path, nf4_tensors(NAME, value, nested=True))[0].values()
    whole = tensor.read()
    monkeypatch.setattr("model.checkpoint.nf4._PIECE", 100)
    assert torch.equal(tensor.read(), whole)


def test_bitsandbytes_reads_the_same_file(peer):
    """With the call that diffusers and transformers make for each weight; diffusers itself wants a GPU for it."""
    directory = peer("head64", "original-nf4")[1]
    sources, tensors = open_checkpoint(directory).sources["dit_cond"], load_file(directory / DIT)
    weights = [name.removesuffix(".absmax") for name in tensors if name.endswith(".absmax")]
    assert len(weights) == 7 + 6, "outside the block with the text's projection, and in it"
    for name in weights:
        parts = {key: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        theirs = Params4bit.from_prequantized(tensors[name], parts, device="cpu")
        if name != "llm_cond_proj.weight":  # of the text encoder's stage
            assert torch.equal(sources[name].read(), nf4_values(theirs.data, theirs.quant_state).float())


def test_layouts_give_the_same_model(peer):
    fused, split = (open_checkpoint(peer("head32", f"{form}-nf4")[1]) for form in ("original", "diffusers"))
    assert (fused.layout, split.layout) == ("original", "diffusers")
    assert fingerprint(fused) == fingerprint(split)
    for stage in ("text_encoder", "dit_cond", "dit_uncond"):
        one, other = fused.load(stage).state_dict(), split.load(stage).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_float8_rows_are_made_from_the_values(peer):
    source = open_checkpoint(peer("head32", "original-nf4")[1]).sources["dit_cond"]["layers.0.attention.qkv.weight"]
    assert not source.coded and source.parts[0].dtype == "NF4"
    for got, wanted in zip(source.quantized(), quantize_rows(source.read()), strict=True):
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))


def edited(tensors, **changes):
    state = json.loads(bytes(tensors[STATE].tolist())) | changes
    return in_bytes(json.dumps(state).encode())


def in_bytes(content):
    return torch.tensor(list(content), dtype=torch.uint8)


def renamed(tensors):
    tensors[STATE.replace("nf4", "fp4")] = tensors.pop(STATE)


@pytest.mark.parametrize(
    ("nested", "spoil", "message"),
    [
        (False, lambda t: t.pop(STATE), f"missing tensor {STATE} of the nf4 weight {NAME}"),
        (False, lambda t: t.pop(f"{NAME}.absmax"), f"missing tensor {NAME}.absmax of the nf4 weight"),
        (False, lambda t: t.pop(NAME), f"missing tensor {NAME} of the nf4 weight"),
        (True, lambda t: t.pop(f"{NAME}.nested_quant_map"), f"missing tensor {NAME}.nested_quant_map of the nf4"),
        (False, renamed, f"{NAME} has bitsandbytes' type 'fp4', wanted 'nf4'"),
        (False, lambda t: t.update({STATE: edited(t, quant_type="fp4")}), "says quant_type 'fp4', wanted 'nf4'"),
        (False, lambda t: t.update({STATE: edited(t, blocksize=48)}), "says blocksize 48, wanted one of 32, 64"),
        (False, lambda t: t.update({STATE: edited(t, blocksize=128)}), "is F32[16], wanted F32 or F16 or BF16[8]"),
        (False, lambda t: t.update({STATE: edited(t, shape=[8, 64])}), f"{NAME} is U8[512, 1], wanted U8[256, 1]"),
        (False, lambda t: t.update({STATE: edited(t, shape=[8, -64])}), "says shape [8, -64], wanted a list of sizes"),
        (False, lambda t: t.update({STATE: edited(t, dtype="int8")}), "says dtype 'int8', wanted one of float32"),
        (True, lambda t: t.update({STATE: edited(t, nested_blocksize=0)}), "says nested_blocksize 0, wanted one of"),
        (True, lambda t: t.update({STATE: edited(t, nested_offset=None)}), "says nested_offset None, wanted a number"),
        (True, lambda t: t.update({STATE: edited(t, nested_offset=10**400)}), "says nested_offset 1000"),
        (True, lambda t: t.update({f"{NAME}.absmax": torch.ones(16)}), "absmax is F32[16], wanted U8[16]"),
        (False, lambda t: t.update({STATE: t[STATE][:-4].clone()}), f"{STATE} is not JSON"),
        (False, lambda t: t.update({STATE: in_bytes(b"[" * 100_000)}), f"{STATE} is nested too deeply"),
        (False, lambda t: t.update({STATE: in_bytes(b'{"a": "\xff"}')}), f"{STATE} is not JSON: 'utf-8' codec"),
        (False, lambda t: t.update({STATE: torch.ones(3)}), f"{STATE} is F32[3], wanted the bytes of a JSON object"),
        (False, lambda t: t.update({f"{NAME}.quant_map": torch.ones(8)}), "quant_map is F32[8], wanted F32 or F16 or"),
    ],
)
def test_defects(tmp_path, nested, spoil, message):
    tensors = nf4_tensors(NAME, torch.randn(16, 64), nested)
    spoil(tensors)
    found, problems = stored(tmp_path, tensors)
    assert len(problems) == 1 and message in problems[0] and NAME not in found


@pytest.mark.parametrize("part", ["quant_map", "absmax"])
def test_damaged_values(peer, tmp_path, part):
    directory = peers.copy(peer("head64", "original-nf4")[1], tmp_path / "checkpoint")
    peers.rewrite(directory / DIT, lambda t: t[f"{NAME}.{part}"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=f"{NAME}.{part} holds NaN or infinity; the file is damaged"):
        open_checkpoint(directory).load("dit_cond")


def test_matrix_of_another_size(peer, tmp_path):
    """The shape is the one that quant_state says, not that of the packed codes."""
    directory = peers.copy(peer("head64", "original-nf4")[1], tmp_path / "checkpoint")
    peers.rewrite(directory / DIT, lambda t: t.update(nf4_tensors(NAME, torch.randn(32, 128))))
    with pytest.raises(CheckpointError, match=r"transformer: input_proj.weight is \[32, 128\], wanted \[64, 128\]"):
        open_checkpoint(directory)

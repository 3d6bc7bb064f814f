"""Folded adapters against diffusers' own loading of the same files, and what can be wrong with them.

The bound of 1e-5 is the project's: folding adds one float32 rounding to each weight, and the peer computes
``W x + s B (A x)`` where we have ``(W + s B A) x``. Measured: 4e-7 to 5.3e-7.
"""

import shutil
from copy import deepcopy

import pytest
import torch
from diffusers import Ideogram4Pipeline
from support import lora_files, peers
from support.lora_files import OUTSIDE, flat, kohya, of_layers, peft, random_matrices, split, write
from support.measure import relative_error

from model.checkpoint.directory import open_checkpoint
from model.checkpoint.fingerprint import fingerprint
from model.checkpoint.folded import Folded
from model.checkpoint.lora import parse_lora, with_loras, without_loras
from model.checkpoint.lora_files import LoraError
from model.checkpoint.sources import Joined, Stored

BOUND = 1e-5
FORMS = ("diffusers", "original-bf16", "original-fp8", "original-nf4")


@pytest.fixture
def base(peer):
    """The transformer that most tests adapt, of diffusers' layout in float32."""
    return peer("head32", "diffusers")[0].transformer


def peft_settings(modules, rank, **changes):
    settings = {"r": rank, "lora_alpha": rank, "target_modules": sorted(modules), "rank_pattern": {}}
    return settings | changes


def in_diffusers(matrices, **changes):
    modules = split(matrices)
    rank = next(iter(modules.values()))[0].shape[0]
    return peft(modules, "transformer."), peft_settings(modules, rank, **changes)


READ_BY_DIFFUSERS = {
    "peft": lambda m: (peft(split(m), "transformer."), None),
    "peft with alpha": lambda m: in_diffusers(m, lora_alpha=3),
    "peft with alphas": lambda m: in_diffusers(m, lora_alpha=3, alpha_pattern={"0.attention.to_k": 7, "w2": 9}),
    "peft, stabilised": lambda m: in_diffusers(m, lora_alpha=3, use_rslora=True),
    "ai-toolkit": lambda m: (peft(m, "diffusion_model."), None),
    "kohya": lambda m: (kohya(m, "diffusion_model.", 2.5), None),
    "fal": lambda m: (peft(m, "conditional_transformer."), None),
    "diffsynth": lambda m: (peft(m, ""), None),
}


def adapted(transformer, *files_and_scales):
    """A copy of the peer's transformer with adapters loaded by the peer."""
    transformer = deepcopy(transformer)
    for number, (file, _) in enumerate(files_and_scales):
        state, metadata = Ideogram4Pipeline.lora_state_dict(
            file.parent, weight_name=file.name, return_lora_metadata=True
        )
        Ideogram4Pipeline.load_lora_into_transformer(state, transformer, adapter_name=f"n{number}", metadata=metadata)
    names = [f"n{number}" for number in range(len(files_and_scales))]
    transformer.set_adapters(names, [scale for _, scale in files_and_scales])
    return transformer


def velocities(pipeline, transformer, checkpoint):
    """(ours, theirs) of the conditional transformer at random inputs: 7 text rows, 3 x 4 image rows, two pictures."""
    random = torch.Generator().manual_seed(5)
    length, grid, batch = 7, (3, 4), 2
    tokens = grid[0] * grid[1]
    positions, segments, indicator = (
        ids.expand(batch, *ids.shape[1:]) for ids in pipeline._prepare_ids([length], *grid, length, torch.device("cpu"))
    )
    cos, sin = (table[0] for table in pipeline.transformer.rotary_emb(positions))
    latents = torch.randn(batch, tokens, 128, generator=random)
    timestep = torch.rand(batch, generator=random)
    features = torch.randn(batch, length, checkpoint.transformer.llm_features_dim, generator=random)
    with torch.no_grad():
        theirs = transformer(
            hidden_states=torch.cat([torch.zeros(batch, length, 128), latents], dim=1),
            timestep=timestep,
            encoder_hidden_states=torch.nn.functional.pad(features, (0, 0, 0, tokens)),
            position_ids=positions,
            segment_ids=segments,
            indicator=indicator,
            return_dict=False,
        )[0][:, length:]
        stage = checkpoint.load("text_encoder")
        text = stage.llm_cond_proj(stage.llm_cond_norm(features))
        return checkpoint.load("dit_cond")(latents, timestep, cos, sin, text), theirs


@pytest.mark.parametrize("spelling", READ_BY_DIFFUSERS)
@pytest.mark.parametrize("form", FORMS)
def test_velocity_equals_diffusers(peer, tmp_path, form, spelling):
    pipeline, directory = peer("head32", form)
    matrices = random_matrices(pipeline.transformer, of_layers(0, 2))
    file = write(tmp_path / "a.safetensors", *READ_BY_DIFFUSERS[spelling](matrices))
    checkpoint = open_checkpoint(directory)
    ours, theirs = velocities(
        pipeline, adapted(pipeline.transformer, (file, 0.8)), with_loras(checkpoint, [f"{file}:0.8"])
    )
    assert relative_error(ours, theirs) <= BOUND
    plain, _ = velocities(pipeline, pipeline.transformer, checkpoint)
    assert relative_error(plain, theirs) > 0.05, "the adapter must be visible"


def test_two_adapters_and_every_kind_of_module(peer, base, tmp_path):
    """The peer takes modules outside the blocks in its own spelling only."""
    pipeline, directory = peer("head32", "diffusers")
    first = random_matrices(base, (*of_layers(1), *OUTSIDE), rank=3, seed=1)
    one = write(tmp_path / "one.safetensors", peft(split(first), "transformer."))
    second = random_matrices(base, of_layers(0, 1), rank=5, seed=2)
    two = write(tmp_path / "two.safetensors", kohya(second, "diffusion_model.", 4.0))
    folded = with_loras(open_checkpoint(directory), [f"{one}:0.5", f"{two}:-0.7"])
    ours, theirs = velocities(pipeline, adapted(base, (one, 0.5), (two, -0.7)), folded)
    assert relative_error(ours, theirs) <= BOUND


@pytest.mark.parametrize(
    "spell",
    [
        lambda m: kohya(m, "lora_unet_", 2.0, flat),
        lambda m: kohya(split(m), "lora_transformer_", 2.0, flat),
        lambda m: kohya(split(m), "diffusion_model.", 2.0),
        lambda m: kohya({n: (a.bfloat16(), b.bfloat16()) for n, (a, b) in m.items()}, "", 2.0),
        lambda m: peft({n: (a, b / 2) for n, (a, b) in m.items()}, "", ".default.weight"),
        lambda m: peft({n: (a, b / 2) for n, (a, b) in split(m).items()}, "conditional_transformer.", ""),
    ],
    ids=["kohya", "onetrainer", "split", "bfloat16", "default", "no weight"],
)
def test_spellings_that_diffusers_does_not_read(peer, base, tmp_path, spell):
    """They fold to the weights of the same adapter in a spelling that it does."""
    checkpoint = open_checkpoint(peer("head32", "diffusers")[1])
    matrices = random_matrices(base, of_layers(0, 2))
    matrices = {n: (a.bfloat16().float(), b.bfloat16().float()) for n, (a, b) in matrices.items()}
    known = write(tmp_path / "known.safetensors", kohya(matrices, "diffusion_model.", 2.0))
    other = write(tmp_path / "other.safetensors", spell(matrices))
    wanted = with_loras(checkpoint, [str(known)]).load("dit_cond").state_dict()
    got = with_loras(checkpoint, [str(other)]).load("dit_cond").state_dict()
    # Sums of four products, of all rows at once or of a third of them.
    assert all(torch.allclose(got[name], wanted[name], rtol=0, atol=1e-6) for name in wanted)
    assert not torch.equal(
        wanted["layers.2.attention.qkv.weight"], checkpoint.load("dit_cond").layers[2].attention.qkv.weight
    )


def touched(folded):
    """Stages whose weights are others than without the adapters."""
    bare = without_loras(folded)
    return {stage for stage in folded.sources if folded.identity(stage) != bare.identity(stage)}


@pytest.mark.parametrize(
    ("target", "changed"),
    [
        ("cond", {"dit_cond", "text_encoder"}),
        ("uncond", {"dit_uncond"}),
        ("both", {"dit_cond", "text_encoder", "dit_uncond"}),
    ],
)
def test_stages_of_a_target(peer, base, tmp_path, target, changed):
    checkpoint = open_checkpoint(peer("head32", "original-fp8")[1])
    file = write(tmp_path / "a.safetensors", peft(random_matrices(base, (*of_layers(1), "llm_cond_proj")), ""))
    folded = with_loras(checkpoint, [str(file)], target)
    assert touched(folded) == changed
    for stage in folded.sources:
        different = {n for n, s in folded.sources[stage].items() if s is not checkpoint.sources[stage][n]}
        block = {f"layers.1.{module}.weight" for module in lora_files.BLOCK}
        wanted = {"llm_cond_proj.weight"} if stage == "text_encoder" else block
        assert different == (wanted if stage in changed else set())
    assert without_loras(folded) == checkpoint


def test_only_the_adapters_of_a_stage_touch_it(peer, base, tmp_path):
    checkpoint = open_checkpoint(peer("head32", "diffusers")[1])
    text = write(tmp_path / "text.safetensors", peft(random_matrices(base, ("llm_cond_proj",)), ""))
    block = write(tmp_path / "block.safetensors", peft(random_matrices(base, of_layers(0)), ""))
    folded = with_loras(checkpoint, [str(text), str(block)])
    assert [spec.name for spec in folded.loras] == ["text.safetensors", "block.safetensors"]
    assert touched(with_loras(checkpoint, [str(text)])) == {"text_encoder"}
    assert touched(with_loras(checkpoint, [str(block)])) == {"dit_cond"}
    assert touched(folded) == {"text_encoder", "dit_cond"}


def test_untouched_rows_keep_their_codes_and_scales(peer, base, tmp_path):
    """An adapter of v alone leaves the rows of q and k as the float8 file holds them, bit for bit; those of v get
    scales of their own and are off by half a step of e4m3 at most, which is 16 of 448 at the row's largest value."""
    checkpoint = open_checkpoint(peer("head32", "original-fp8")[1])
    down, up = random_matrices(base, ("layers.1.attention.qkv",))["layers.1.attention.qkv"]
    up[:192] = 0
    up[200] = 0
    fused = write(tmp_path / "fused.safetensors", peft({"layers.1.attention.qkv": (down, up)}, ""))
    alone = write(tmp_path / "alone.safetensors", peft({"layers.1.attention.to_v": (down, up[192:].clone())}, ""))
    for file in (fused, alone):
        name = "layers.1.attention.qkv.weight"
        source = checkpoint.sources["dit_cond"][name]
        folded = with_loras(checkpoint, [str(file)]).sources["dit_cond"][name]
        kept = torch.ones(288, dtype=torch.bool)
        kept[192:] = False
        kept[200] = True
        codes, scales = folded.quantized()
        old_codes, old_scales = source.read_codes()
        assert torch.equal(codes.view(torch.uint8)[kept], old_codes.view(torch.uint8)[kept])
        assert torch.equal(scales[kept], old_scales[kept])
        weight = source.read()
        weight[192:] += up[192:] @ down
        error = (codes.float() * scales[:, None] - weight).abs().amax(dim=1) / weight.abs().amax(dim=1)
        assert error[~kept].max() <= 16.1 / 448 and error[kept].max() == 0
        assert ((codes.view(torch.uint8) & 0x7F).amax(dim=1) == 0x7E).all(), "the largest code of each row is 448"
        assert not folded.coded, "--keep-base keeps it in the base type"


def test_joined_weights_keep_the_rows_of_the_untouched_one(peer, base, tmp_path):
    """TensorRT's graphs have w1 and w3 in one product."""
    checkpoint = open_checkpoint(peer("head32", "original-fp8")[1])
    file = write(tmp_path / "a.safetensors", peft(random_matrices(base, ("layers.0.feed_forward.w3",)), ""))
    sources = with_loras(checkpoint, [str(file)]).sources["dit_cond"]
    w1, w3 = (sources[f"layers.0.feed_forward.{name}.weight"] for name in ("w1", "w3"))
    joined = Joined((w1, w3))
    codes, scales = joined.quantized()
    assert not joined.coded and isinstance(w1, Stored) and isinstance(w3, Folded)
    for rows, source in ((slice(80), w1), (slice(80, 160), w3)):
        wanted = source.quantized()
        assert torch.equal(codes[rows].view(torch.uint8), wanted[0].view(torch.uint8))
        assert torch.equal(scales[rows], wanted[1])


def test_fingerprint_tells_adapters_apart(peer, base, tmp_path):
    """Also those that leave alone what the fingerprint samples."""
    checkpoint = open_checkpoint(peer("head32", "original-fp8")[1])
    files = []
    for seed in (1, 2):
        matrices = random_matrices(base, ("layers.2.adaln_modulation",), 2, seed)
        files.append(str(write(tmp_path / f"{seed}.safetensors", peft(matrices, ""))))
    given = [
        ([], "cond"),
        (files[:1], "cond"),
        (files[1:], "cond"),
        ([f"{files[0]}:2"], "cond"),
        (files[:1], "both"),
        (files, "cond"),
        (files[::-1], "cond"),
    ]
    checkpoints = [with_loras(checkpoint, loras, target) for loras, target in given]
    assert len({fingerprint(c) for c in checkpoints}) == len(given)
    assert checkpoints[0] is checkpoint and fingerprint(without_loras(checkpoints[1])) == fingerprint(checkpoint)


def test_nothing_is_computed_before_a_weight_is_read(peer, base, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(peer("head32", "diffusers")[1])
    file = write(tmp_path / "a.safetensors", peft(random_matrices(base, of_layers(0, 1, 2)), ""))
    monkeypatch.setattr(Stored, "read", lambda _: pytest.fail("a weight was read"))
    folded = with_loras(checkpoint, [str(file)])
    assert sum(isinstance(s, Folded) for s in folded.sources["dit_cond"].values()) == 18


def test_reading_leaves_the_checkpoint_alone(peer, base, tmp_path):
    """Twice the same, and the file's own weight as it was: in float32 its memory may be the file's."""
    checkpoint = open_checkpoint(peer("head32", "diffusers")[1])
    before = checkpoint.sources["dit_cond"]["layers.0.feed_forward.w1.weight"].read().clone()
    file = write(tmp_path / "a.safetensors", peft(random_matrices(base, of_layers(0)), ""))
    folded = with_loras(checkpoint, [str(file)]).sources["dit_cond"]["layers.0.feed_forward.w1.weight"]
    assert torch.equal(folded.read(), folded.read()) and not torch.equal(folded.read(), before)
    assert torch.equal(checkpoint.sources["dit_cond"]["layers.0.feed_forward.w1.weight"].read(), before)


def test_scale_is_behind_the_last_colon(tmp_path):
    for name in ("a.safetensors", "b:2", "c:d"):
        (tmp_path / name).touch()
    assert parse_lora(f"{tmp_path}/a.safetensors") == (tmp_path / "a.safetensors", 1.0)
    assert parse_lora(f"{tmp_path}/a.safetensors:-.5") == (tmp_path / "a.safetensors", -0.5)
    assert parse_lora(f"{tmp_path}/b:2") == (tmp_path / "b:2", 1.0)
    assert parse_lora(f"{tmp_path}/b:2:3") == (tmp_path / "b:2", 3.0)
    assert parse_lora(f"{tmp_path}/c:d:3") == (tmp_path / "c:d", 3.0)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (":strong", "has the scale 'strong', wanted a number"),
        (":", "has the scale '', wanted a number"),
        (":nan", "has the scale nan, wanted a finite number other than 0"),
        (":1e39", "has the scale 1e39, wanted a finite number other than 0 in float32"),
        (":-1e39", "has the scale -1e39, wanted a finite number other than 0 in float32"),
        (":1e-39", "has the scale 1e-39, wanted a finite number other than 0 in float32"),
        (":inf", "wanted a finite number"),
        (":0", "has the scale 0, wanted a finite number other than 0"),
    ],
)
def test_scales_that_are_none(tmp_path, scale, message):
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(LoraError, match=message):
        parse_lora(f"{tmp_path}/a.safetensors{scale}")


Q, QKV = "layers.0.attention.to_q", "layers.0.attention.qkv"


def spoilt(change):
    def spell(matrices):
        tensors = peft(matrices, "diffusion_model.")
        change(tensors)
        return tensors

    return spell


def key(module, role):
    return f"diffusion_model.{module}.lora_{role}.weight" if role != "alpha" else f"diffusion_model.{module}.alpha"


def put(**parts):
    """Other parts of one module."""
    return spoilt(lambda t: t.update({key(QKV, role): part for role, part in parts.items()}))


@pytest.mark.parametrize(
    ("spell", "message"),
    [
        (lambda m: peft(m, "unet."), r"is not a LoRA for this model: none of its 12 tensors adapts .*, and 8 more\)"),
        (
            lambda m: peft({n.replace("layers.0", "layers.3"): p for n, p in m.items()}, ""),
            "is not a LoRA for this model",
        ),
        (lambda m: {"weight": torch.ones(2)}, r"none of its 1 tensors adapts .* such as input_proj \(weight\)"),
        (
            spoilt(lambda t: t.update({key("layers.9.attention.o", "A"): torch.ones(2, 96)})),
            r"holds 1 tensors that have no place in this model: diffusion_model.layers.9.attention.o.lora_A.weight$",
        ),
        (
            spoilt(lambda t: t.update({f"x.{i}": torch.ones(1) for i in range(9)})),
            r"holds 9 tensors that have no place in this model: x.0, x.1, x.2, x.3, and 5 more",
        ),
        (spoilt(lambda t: t.update({"diffusion_model.layers.0.attention.o.dora_scale": torch.ones(96)})), "dora_scale"),
        (spoilt(lambda t: t.update({f"diffusion_model.{QKV}.lora_B.bias": torch.ones(288)})), "qkv.lora_B.bias"),
        (spoilt(lambda t: t.pop(key(QKV, "B"))), f"{key(QKV, 'A')} has no lora_B beside it"),
        (spoilt(lambda t: t.pop(key(QKV, "A"))), f"{key(QKV, 'B')} has no lora_A beside it"),
        (put(A=torch.ones(4, 64)), r"qkv.lora_A.weight is \[4, 64\], wanted \[4, 96\]"),
        (put(B=torch.ones(96, 4)), r"qkv.lora_B.weight is \[96, 4\], wanted \[288, 4\]"),
        (put(B=torch.ones(288, 5)), r"is \[288, 5\], wanted \[288, 4\]"),
        (put(A=torch.ones(0, 96), B=torch.ones(288, 0)), r"is \[0, 96\]"),
        (put(A=torch.ones(4, 96, dtype=torch.int32)), "is I32, wanted F32, F16, BF16"),
        (put(alpha=torch.ones(3)), r"alpha is \[3\], wanted one number"),
        (put(alpha=torch.tensor(torch.inf)), "alpha holds NaN or infinity"),
        (spoilt(lambda t: t[key(QKV, "A")].fill_(torch.nan)), "qkv.lora_A.weight holds NaN or infinity"),
        (spoilt(lambda t: t.update({f"transformer.{QKV}.lora_A.weight": torch.ones(4, 96)})), "are the same part of"),
        (
            spoilt(lambda t: t.update({key(Q, "A"): torch.ones(1, 96), key(Q, "B"): torch.ones(96, 1)})),
            f"adapts the same rows as {QKV} and as {Q}",
        ),
    ],
)
def test_defects(peer, base, tmp_path, spell, message):
    file = write(tmp_path / "a.safetensors", spell(random_matrices(base, of_layers(0))))
    with pytest.raises(LoraError, match=message):
        with_loras(open_checkpoint(peer("head32", "diffusers")[1]), [str(file)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": "4"}, "says lora_alpha '4', wanted a number"),
        ({"use_dora": True}, "is a DoRA, which cannot be folded"),
        ({"lora_alpha": 10**400}, "says lora_alpha 1000.*, wanted a number"),
        ({"lora_alpha": 1e39}, r"says lora_alpha 1e\+39, wanted a number"),
        ({"lora_alpha": 1e-44}, r"of .* is multiplied by 2\.5e-45, its scale 1 times alpha / rank"),
        ({"alpha_pattern": ["to_q"]}, r"says alpha_pattern \['to_q'\], wanted patterns and numbers"),
        ({"alpha_pattern": {"(": 1}}, "says alpha_pattern .*, wanted patterns and numbers"),
    ],
)
def test_settings(peer, base, tmp_path, settings, message):
    matrices = peft(random_matrices(base, of_layers(0)), "")
    file = write(tmp_path / "a.safetensors", matrices, settings)
    with pytest.raises(LoraError, match=message):
        with_loras(open_checkpoint(peer("head32", "diffusers")[1]), [str(file)])


def test_a_scale_that_makes_a_weight_infinite(peer, base, tmp_path):
    """Each of them is a number: the matrices' values, the scale, and their products with it."""
    matrices = {name: (down * 1e10, up * 1e10) for name, (down, up) in random_matrices(base, of_layers(0)).items()}
    file = write(tmp_path / "a.safetensors", peft(matrices, ""))
    sources = with_loras(open_checkpoint(peer("head32", "diffusers")[1]), [f"{file}:1e20"]).sources["dit_cond"]
    weight = sources["layers.0.attention.o.weight"]
    for read in (weight.read, weight.quantized):
        with pytest.raises(LoraError, match=r"the LoRA a.safetensors makes .*attention.* infinite at the scale 1e\+20"):
            read()


def test_no_unconditional_transformer(peer, base, tmp_path):
    directory = peers.copy(peer("head32", "diffusers")[1], tmp_path / "distilled")
    shutil.rmtree(directory / "unconditional_transformer")
    file = write(tmp_path / "a.safetensors", peft(random_matrices(base, of_layers(0)), ""))
    checkpoint = open_checkpoint(directory)
    assert touched(with_loras(checkpoint, [str(file)])) == {"dit_cond"}
    with pytest.raises(ValueError, match=r"--lora-target is both, but .*distilled has no unconditional transformer"):
        with_loras(checkpoint, [str(file)], "both")


def test_files_and_targets(peer, base, tmp_path):
    checkpoint = open_checkpoint(peer("head32", "diffusers")[1])
    file = write(tmp_path / "a.safetensors", peft(random_matrices(base, ("llm_cond_proj",)), ""))
    with pytest.raises(LoraError, match=r"a.safetensors is given twice; give it once, with the sum of the scales"):
        with_loras(checkpoint, [str(file), f"{file}:2"])
    with pytest.raises(LoraError, match="adapts only the text projection, which --lora-target uncond leaves out"):
        with_loras(checkpoint, [str(file)], "uncond")
    with pytest.raises(ValueError, match="--lora-target both goes with --lora"):
        with_loras(checkpoint, [], "both")
    with pytest.raises(ValueError, match="--lora-target is 'all', wanted one of cond, uncond, both"):
        with_loras(checkpoint, [str(file)], "all")
    with pytest.raises(FileNotFoundError, match=r"there is no LoRA file .*none.safetensors$"):
        with_loras(checkpoint, [f"{tmp_path}/none.safetensors:0.5"])
    (tmp_path / "broken").write_bytes(file.read_bytes()[:-9])
    with pytest.raises(LoraError, match="broken is not a whole safetensors file"):
        with_loras(checkpoint, [f"{tmp_path}/broken"])

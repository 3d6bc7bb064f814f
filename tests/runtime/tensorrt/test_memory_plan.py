"""Which engines are loaded together, for cards of usual sizes and the released float8 model's plans."""

from dataclasses import replace

import pytest
from support.engines.bundles import ACTIVATIONS, FP8_WEIGHTS, GB, STAGES, engine_set, manifest

from runtime.tensorrt.memory_plan import MARGIN, OVERHEAD, STREAMING_SCRATCH, MemoryPlanError, plan_memory

STEPS = (("text_encoder",), ("dit_cond", "dit_uncond"), ("vae_decoder",))


def plan(free, wanted="auto", streaming=False, stages=STAGES):
    engines = engine_set(streaming=streaming)
    return plan_memory(engines, manifest(engines).files, stages, free, wanted)


def test_a_card_of_48_gb_holds_everything():
    got = plan(46 * GB)
    assert (got.level, got.groups, got.budgets) == ("resident", (STAGES,), ())
    # Engines run in turns: of the activations only the largest count.
    assert got.needed == sum(FP8_WEIGHTS.values()) + max(ACTIVATIONS.values()) + OVERHEAD
    assert got.reason == "resident: needs 30.9 GB of 46.0 GB free"


def test_a_card_of_24_gb_holds_one_step():
    got = plan(23 * GB)
    assert (got.level, got.groups) == ("staged", STEPS)
    assert got.needed == 9_300_000_000 + 9_000_000_000 + 900_000_000 + OVERHEAD
    assert got.reason == "staged: needs 19.7 GB of 23.0 GB free, resident needs 30.9 GB"


def test_a_card_of_16_gb_swaps_the_transformers():
    got = plan(15 * GB)
    assert (got.level, got.groups) == ("swapped", tuple((stage,) for stage in STAGES))
    assert got.needed == 9_300_000_000 + 900_000_000 + OVERHEAD
    assert got.reason.endswith("every step reads 18.3 GB of weights")


def test_a_card_of_16_gb_streams_weights_where_the_engines_can():
    got = plan(15 * GB, streaming=True)
    assert (got.level, got.groups) == ("streamed", STEPS)
    budgets = dict(got.budgets)
    assert set(budgets) == {"dit_cond", "dit_uncond"}, "the text encoder and the VAE fit whole"
    assert got.needed <= 15 * GB
    # The room is used, but for the copies and a margin, to the byte that rounding leaves.
    allowed = OVERHEAD + STREAMING_SCRATCH + MARGIN
    assert sum(budgets.values()) == pytest.approx(15 * GB - 900_000_000 - allowed, abs=2)
    assert MARGIN >= 0.01 * 15 * GB, "room for what other programs take meanwhile"
    # Both transformers keep the same share.
    assert budgets["dit_cond"] / budgets["dit_uncond"] == pytest.approx(9.3 / 9.0, rel=1e-6)  # rounding to bytes
    assert "5.5 GB of weights stay in host memory" in got.reason


def test_a_card_of_16_gb_holds_the_conditional_transformer_alone():
    """Pictures without guidance need no other."""
    got = plan(15 * GB, stages=STAGES[:3])
    assert (got.level, got.groups) == ("staged", (("text_encoder",), ("dit_cond",), ("vae_decoder",)))


def test_a_card_of_8_gb_streams_or_is_refused():
    assert plan(7.5 * GB, streaming=True).level == "streamed"
    with pytest.raises(
        MemoryPlanError,
        match=r"the rtx engines for sm89, sm120 need 30.9 GB resident, 19.7 GB staged, 10.7 GB swapped, and 7.5 GB of "
        r"device memory are free; close other programs .*, or build them for smaller pictures \(--max-size\) or with "
        "--weight-streaming$",
    ):
        plan(7.5 * GB)


def test_streaming_has_an_end():
    """A quarter of the weights and all activations must fit."""
    with pytest.raises(MemoryPlanError, match=r"6.8 GB streamed, 10.7 GB swapped, and 4.0 GB .*free; close other prog"):
        plan(4 * GB, streaming=True)


def test_resident_is_not_made_smaller_in_silence():
    with pytest.raises(MemoryPlanError, match=r"need 30.9 GB resident, and 23.0 GB .* free; choose --memory staged or"):
        plan(23 * GB, "resident")
    assert plan(46 * GB, "resident").level == "resident"


def test_staged_is_what_is_asked_for_or_less():
    assert plan(46 * GB, "staged").level == "staged"
    assert plan(15 * GB, "staged").level == "swapped"


def test_exactly_enough_is_enough():
    needed = plan(46 * GB).needed
    assert plan(needed).level == "resident"
    assert plan(needed - 1).level == "staged"


def test_tiles_are_a_step_of_their_own():
    """A picture's VAE runs on the whole or on tiles: only one of them need be on the device, and have room."""
    engines = engine_set()
    files = manifest(engines).files
    decoder = engines.graphs["vae_decoder"]
    small = replace(decoder, profiles=(replace(decoder.profiles[0], activation_bytes=GB),))
    tiles = dict.fromkeys(("vae_encoder_tile", "vae_decoder_tile"), small)
    more = {"vae_encoder": engines.graphs["vae_decoder"]} | tiles
    engines = replace(engines, graphs=engines.graphs | more)
    got = plan_memory(engines, files, (*STAGES, *more), 46 * GB, "staged")
    assert got.groups == (*STEPS[:2], ("vae_encoder", "vae_decoder"), ("vae_decoder_tile", "vae_encoder_tile"))
    without = [stage for stage in STAGES if stage != "vae_decoder"]
    whole, tiled = (plan_memory(engines, files, stages, 46 * GB) for stages in (STAGES, (*without, "vae_decoder_tile")))
    assert whole.needed - tiled.needed == ACTIVATIONS["vae_decoder"] - GB, "of the tiles' larger scratch memory"
    # Everything on the device together: one more plan of 0.1 GB each, and still the largest scratch memory.
    resident = plan_memory(engines, files, (*STAGES, *more), 46 * GB)
    assert resident.needed == whole.needed + 3 * FP8_WEIGHTS["vae_decoder"]


def test_unknown_level():
    with pytest.raises(ValueError, match=r"memory is 'all', wanted one of auto, resident, staged"):
        plan(46 * GB, "all")

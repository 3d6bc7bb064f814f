"""Sizes that engines do not take are refused from the manifest alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.engines.bundles import STAGES, engine_set, with_profiles, with_tiles
from support.engines.bundles import picture_plan as plan

from runtime.backend.limits import activation_bytes, check_limits
from runtime.bundle.graph_specs import SizeRange
from runtime.image.init_image import Source, Start

ENGINES = engine_set()
START = Start(Source(Path("a.png")), 2048, 2048, 0.6, None, 16, {}, "00", None)


def profile(spec, **sizes):
    """The spec's first profile with other ranges of some sizes."""
    (first, *_) = spec.profiles
    return replace(first, sizes=first.sizes | sizes)


@pytest.mark.parametrize("size", [(256, 256), (1024, 1024), (2048, 2048), (2048, 1024)])
def test_what_fits(size):
    check_limits(ENGINES, STAGES, plan(*size))
    check_limits(ENGINES, STAGES, plan(*size, tokens=1))
    check_limits(ENGINES, STAGES, plan(*size, tokens=2048))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            plan(2064, 1024),
            r"a picture of 2064x1024 is outside of what the engines were built for: the picture's width in image "
            r"tokens is 129, and the vae_decoder of the rtx engines for sm89, sm120 takes 16 to 128; build them with "
            r"another --max-size, or use --backend ort",
        ),
        (plan(240, 2048), "picture's width in image tokens is 15, .* takes 16 to 128; build them with another --min-s"),
        (
            plan(tokens=2049),
            "the number of text tokens is 2049, and the text_encoder .* takes 1 to 2048; use a shorter",
        ),
        (
            plan(unconditional="conditional"),
            "--unconditional conditional runs the conditional transformer without text, and the rtx engines .* take 1",
        ),
    ],
)
def test_what_does_not(wrong, message):
    with pytest.raises(ValueError, match=message):
        check_limits(ENGINES, STAGES, wrong)


def test_image_tokens_are_a_limit_of_their_own():
    """Both sides may be allowed and their product not."""
    spec = ENGINES.graphs["dit_cond"]
    small = replace(spec, profiles=(profile(spec, N=SizeRange(256, 4096, 8192)),))
    engines = replace(ENGINES, graphs=ENGINES.graphs | {"dit_cond": small})
    check_limits(engines, STAGES, plan(2048, 1024))
    with pytest.raises(ValueError, match=r"the number of image tokens is 8320, and the dit_cond .* takes 256 to 8192"):
        check_limits(engines, STAGES, plan(2048, 1040))


def test_without_guidance_the_missing_text_does_not_matter():
    check_limits(ENGINES, STAGES, plan(guidance=1.0, unconditional="conditional"))


def test_only_the_stages_that_run_count():
    check_limits(ENGINES, ("text_encoder",), plan(4096, 4096))


TILED = with_tiles(ENGINES)


@pytest.mark.parametrize(("width", "height", "tile"), [(2048, 2048, 1152), (2048, 256, 1152), (2048, 2048, 256)])
def test_tiles_that_fit(width, height, tile):
    check_limits(TILED, TILED.graphs, replace(plan(width, height), vae_tile=tile))


def test_tiles_that_do_not():
    message = (
        r"the height of a tile is 1168 pixels, and the vae_decoder_tile of the rtx engines for sm89, sm120 takes 256 "
        r"to 1152; choose another --vae-tile, or --backend ort"
    )
    with pytest.raises(ValueError, match=message):
        check_limits(TILED, TILED.graphs, replace(plan(2048, 2048), vae_tile=1168))
    with pytest.raises(ValueError, match="the width of a tile is 1168 pixels, and the vae_decoder_tile"):
        check_limits(TILED, TILED.graphs, replace(plan(2048, 1024), vae_tile=1168))
    # Of an encoder, which takes pixels, only where there is a picture to encode.
    spec = TILED.graphs["vae_encoder_tile"]
    sizes = dict.fromkeys(spec.profiles[0].sizes, SizeRange(256, 512, 512))
    small = replace(spec, profiles=(profile(spec, **sizes),))
    engines = replace(TILED, graphs=TILED.graphs | {"vae_encoder_tile": small})
    tiled = replace(plan(2048, 2048), vae_tile=1152)
    check_limits(engines, TILED.graphs, tiled)
    with pytest.raises(
        ValueError, match=r"the height of a tile is 1152 pixels, and the vae_encoder_tile .* 256 to 512"
    ):
        check_limits(engines, TILED.graphs, replace(tiled, start=START))


def test_the_whole_vae_does_not_limit_pictures_in_tiles():
    """3200 x 512 has fewer image tokens than the transformers take, and the whole decoder would refuse its width."""
    wide = plan(3200, 512)
    with pytest.raises(ValueError, match="width in image tokens is 200, and the vae_decoder of"):
        check_limits(TILED, TILED.graphs, wide)
    check_limits(TILED, TILED.graphs, replace(wide, vae_tile=1152))


def test_each_profile_may_hold_a_picture():
    engines = with_profiles(ENGINES, (256, 768), (1024, 2048))
    for size in (256, 512, 768, 1024, 2048):
        check_limits(engines, STAGES, plan(size, size))


def test_pictures_between_two_profiles():
    engines = with_profiles(ENGINES, (256, 768), (1024, 2048))
    message = (
        r"a picture of 896x896 is outside of what the engines were built for: the picture's height in image tokens is "
        r"56, and the vae_decoder of the rtx engines for sm89, sm120 takes 16 to 48 or 64 to 128; build them with "
        r"another --profile, or use --backend ort"
    )
    with pytest.raises(ValueError, match=message):
        check_limits(engines, STAGES, plan(896, 896))
    with pytest.raises(ValueError, match=r"takes 16 to 48 or 64 to 128; build them with another --max-size"):
        check_limits(engines, STAGES, plan(2064, 1024))


def test_sides_of_different_profiles():
    engines = with_profiles(ENGINES, (256, 768), (1024, 2048))
    message = (
        r"a picture of 1536x512 with 20 text tokens fits no profile of the vae_decoder of the rtx engines for sm89, "
        r"sm120, which take grid_h 16 to 48 and grid_w 16 to 48, or grid_h 64 to 128 and grid_w 64 to 128; build them "
        r"with another --profile, or use --backend ort"
    )
    with pytest.raises(ValueError, match=message):
        check_limits(engines, ("vae_decoder",), plan(1536, 512))
    check_limits(with_profiles(ENGINES, (256, 768), (256, 2048)), STAGES, plan(1536, 512))


def test_tiles_of_several_profiles():
    spec = TILED.graphs["vae_decoder_tile"]
    names = spec.profiles[0].sizes
    small, large = (
        replace(spec.profiles[0], sizes=dict.fromkeys(names, r)) for r in (SizeRange(16, 20, 24), SizeRange(48, 64, 72))
    )
    engines = replace(TILED, graphs=TILED.graphs | {"vae_decoder_tile": replace(spec, profiles=(small, large))})
    check_limits(engines, TILED.graphs, replace(plan(2048, 2048), vae_tile=384))
    message = (
        r"the height of a tile is 512 pixels, and the vae_decoder_tile of .* takes 256 to 384 or 768 to 1152; choose"
    )
    with pytest.raises(ValueError, match=message):
        check_limits(engines, TILED.graphs, replace(plan(2048, 2048), vae_tile=512))
    with pytest.raises(
        ValueError, match=r"a tile of 768 pixels of a picture of 2048x256 fits no profile of the vae_dec"
    ):
        check_limits(engines, TILED.graphs, replace(plan(2048, 256), vae_tile=768))


def test_memory_of_the_profiles_that_will_run():
    """Profiles of 1 MB and 9 MB; a stage that no plan runs needs none."""
    engines = with_profiles(TILED, (256, 768), (256, 2048))

    def sized(spec):
        return replace(
            spec, profiles=tuple(replace(p, activation_bytes=n) for p, n in zip(spec.profiles, (1, 9), strict=True))
        )

    engines = replace(engines, graphs={name: sized(spec) for name, spec in engines.graphs.items()})
    small, large = plan(512, 512), plan(1024, 512)
    assert activation_bytes(engines, TILED.graphs, ()) == {}
    needs = activation_bytes(engines, TILED.graphs, [small])
    assert {stage: need for stage, need in needs.items() if need} == dict.fromkeys(STAGES, 1)
    assert needs["vae_encoder"] == needs["vae_decoder_tile"] == 0
    both = activation_bytes(engines, TILED.graphs, [small, large])
    assert both["vae_decoder"] == 9, "one side is too long for the smaller profile"
    assert both["dit_cond"] == 1, "and the number of image tokens is not"
    tiled = activation_bytes(engines, TILED.graphs, [replace(plan(2048, 2048), vae_tile=1152)])
    assert (tiled["vae_decoder"], tiled["vae_decoder_tile"], tiled["dit_cond"]) == (0, 1, 9)
    beyond = activation_bytes(engines, TILED.graphs, [plan(4096, 4096)])
    assert beyond["dit_cond"] == 9, "refused later, by its size"

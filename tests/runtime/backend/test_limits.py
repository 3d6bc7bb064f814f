"""Sizes that engines do not take are refused from the manifest alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.engines.bundles import STAGES, engine_set, with_tiles

from runtime.backend.limits import check_limits
from runtime.bundle.manifest import SizeRange
from runtime.image.init_image import Source, Start
from runtime.plan import Plan
from runtime.sampling.schedule import sampling

ENGINES = engine_set()
START = Start(Source(Path("a.png")), 2048, 2048, 0.6, None, 16, {}, "00", None)


def plan(width=1024, height=1024, tokens=20, guidance=7.0, unconditional="graph"):
    return Plan(
        "x", tuple(range(tokens)), width, height, 16, 0, 5, sampling(None, 2, guidance, None, None), unconditional
    )


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
    small = replace(spec, sizes=spec.sizes | {"N": SizeRange(256, 4096, 8192)})
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
    small = replace(spec, sizes=dict.fromkeys(spec.sizes, SizeRange(256, 512, 512)))
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

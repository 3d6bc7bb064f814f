"""Draw a grid: one column for each prompt, one row of pictures for each bundle of the demo model.

python -m scripts.demo.gallery BUNDLE... --output docs/gallery.png
"""

import argparse
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from runtime.console import guard
from runtime.pipeline import Pipeline
from runtime.progress import track

PROMPTS = (
    "a red circle on a blue background",
    "a large yellow star at the center on a black background",
    "a small white heart at the top right on a red background",
    "a large purple ring at the bottom left on a yellow background",
    "a green triangle at the bottom on a white background",
    "a cyan cross at the left and a yellow square at the top right on a purple background",
    '{"compositional_deconstruction":{"background":"green","elements":'
    '[{"type":"obj","bbox":[250,100,700,550],"desc":"a large white star"}]}}',
    'the word "SUN" in yellow at the center on a blue background',
)
SEED = 4
_GAP, _TEXT, _LABEL, _FONT = 8, 136, 46, 11
"""Pixels between pictures, for the prompts above them, for the names of the rows, and of the letters' height."""
_LETTERS_A_LINE = 22


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return guard(
        "scripts.demo.gallery",
        lambda: make_gallery(args.bundles, args.output, args.preset, args.guidance, args.overwrite),
    )


def make_gallery(bundles: list[Path], output: Path, preset: str, guidance: float | None, overwrite: bool) -> None:
    """Generate the pictures and write the grid."""
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another --output or add --overwrite")
    rows = []
    for bundle in bundles:
        pipeline = Pipeline.load(bundle)
        prompts = track(PROMPTS, pipeline.manifest.precision, "picture")
        made = [pipeline.generate(prompt, preset=preset, guidance=guidance, seed=SEED) for prompt in prompts]
        rows.append((pipeline.manifest.precision, [one.images[0] for one in made]))
    side = rows[0][1][0].shape[0] + _GAP
    grid = Image.new("RGB", (_LABEL + side * len(PROMPTS), _TEXT + side * len(rows)), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(_FONT)
    for column, prompt in enumerate(PROMPTS):
        lines = textwrap.fill(prompt, _LETTERS_A_LINE, break_on_hyphens=False)
        pen.multiline_text((_LABEL + column * side, _TEXT - _GAP), lines, fill="black", font=font, anchor="ld")
    for row, (name, pictures) in enumerate(rows):
        top = _TEXT + row * side
        pen.text((_GAP, top + side / 2), name, fill="black", font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            grid.paste(Image.fromarray(picture), (_LABEL + column * side, top))
    grid.save(output, optimize=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo.gallery", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles of the demo model, a row for each")
    add("--output", type=Path, required=True, metavar="FILE", help="PNG to write")
    add("--overwrite", action="store_true", help="replace it if it exists")
    add("--preset", default="V4_DEFAULT_20", metavar="NAME", help="(default: %(default)s)")
    add("--guidance", type=float, metavar="WEIGHT", help="at every step (default: the model's)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

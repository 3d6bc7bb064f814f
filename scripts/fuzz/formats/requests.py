"""What users write: prompt files and captions, fonts, and pictures that may be finished already."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image, ImageFont

from calibration.prompts import read_prompts
from runtime.bundle.manifest import read_manifest
from runtime.cli.batch import Failures, caption_of, check_files, settings_of
from runtime.cli.finished import finished_files
from runtime.cli.main import job_from_options, read_jobs
from runtime.cli.options import build_parser
from runtime.cli.prompt_file import job_of_line, jsonl_folder, read_lines
from runtime.image.output_files import encode
from runtime.layout import fonts
from runtime.layout.drawing import draw_layout
from runtime.layout.fonts import choose_face
from runtime.prompt.caption import CHECKS, Caption, looks_like_json
from runtime.prompt.reading import PromptReader, ReadPrompt
from runtime.prompt.tokens import PromptEncoder
from scripts.fuzz.case import Case, World
from scripts.fuzz.formats.pictures import LOCAL_PEAK
from scripts.fuzz.mutation import byte_strings, json_texts, pictures, texts
from scripts.fuzz.strategies import json_values, replaced

_CAPTION = {
    "high_level_description": "a travel poster",
    "style_description": {
        "aesthetics": "retro",
        "lighting": "flat",
        "medium": "illustration",
        "art_style": "screen print",
        "color_palette": ["#FFFFFF", "#2D6A6A"],
    },
    "compositional_deconstruction": {
        "background": "cream paper",
        "elements": [
            {"type": "text", "bbox": [100, 100, 300, 900], "text": "ALPS", "desc": "capitals"},
            {"type": "obj", "bbox": [400, 0, 1000, 1000], "desc": "mountains", "color_palette": ["#C8553D"]},
            {"type": "obj", "desc": "tiny birds"},
        ],
    },
}
_LINES = (
    {"prompt": "a red circle", "seed": 7, "output": "circle.png", "width": 256, "height": 256},
    {"prompt": "a blue square", "negative_prompt": "red", "steps": 4, "guidance": [7, 3, 3, 1], "num_images": 2},
    {"prompt": "x", "preset": "V4_TURBO_12", "guidance": "7x11,3x1", "guidance_interval": [0.1, 0.8], "mu": 0.5},
    {
        "prompt": "the same",
        "image": "house.png",
        "strength": 0.7,
        "fit": "crop",
        "mask": "house.png",
        "vae_tile": "off",
    },
    {"caption": _CAPTION, "layout": "plan.png", "unconditional": "conditional", "std": 1.5, "uncond_every": 2},
)


def jsonl(world: World, folder: Path) -> Case:
    """A JSONL file: every line is read, planned and, where it asks for it, drawn."""
    example = "\n".join(map(json.dumps, _LINES)).encode()
    lines = st.lists(json_values | _line_values(), min_size=1, max_size=3)
    strategy = lines.map(lambda values: "\n".join(json.dumps(value) for value in values).encode())
    return _prompt_file(world, folder / "prompts.jsonl", (example,), _mutated_jsonl, strategy)


def prompt_file(world: World, folder: Path) -> Case:
    """A prompt on each line."""
    example = ("a red circle\n\né \U0001f600 名前\n" + json.dumps(_CAPTION)).encode()
    strategy = st.text(st.characters(), max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return _prompt_file(world, folder / "prompts.txt", (example,), texts.mutated_lines, strategy)


def caption(world: World, folder: Path) -> Case:
    """A caption in a file of its own, by each of the three ways to check it, and its layout."""
    file, face = folder / "caption.json", choose_face("", None)
    examples = (json.dumps(_CAPTION).encode(), json.dumps(_CAPTION, indent=1).encode())

    def read() -> None:
        args = build_parser().parse_args(["--caption", str(file), "--check-caption", _check(file)])
        (job,), _ = read_jobs(args, Failures(print), lambda where, text: None)
        if job.caption is not None:
            draw_layout(job.caption, 512, 256, face)

    return Case(file, examples, json_texts.mutated, read, (file.name,), strategy=replaced(examples))


def calibration_prompts(world: World, folder: Path) -> Case:
    """The prompts that measurements are made with."""
    file, encoder = folder / "prompts.txt", _encoder(world)
    examples = ("# a comment\na red circle\n\né \U0001f600".encode(),)
    return Case(file, examples, texts.mutated_lines, lambda: read_prompts(file, encoder), (file.name,))


def finished_picture(world: World, folder: Path) -> Case:
    """Pictures that an earlier run may have made."""
    file = folder / "picture.png"
    settings = {"prompt": "a red circle", "seed": 7, "index": 0, "start": None, "sampling": {"guidance": [7.0, 3.0]}}
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    examples = tuple(encode(pixels, settings, Path(name)) for name in ("a.png", "a.jpg", "a.webp"))

    def read() -> None:
        finished_files([file], settings, overwrite=False)

    return Case(file, examples, pictures.mutated, read, (file.name,), peak_bytes=LOCAL_PEAK)


def font(world: World, folder: Path) -> Case:
    """The font of a layout."""
    file, poster = folder / "font.ttf", Caption.from_json(_CAPTION)
    examples = (_font(),)

    def read() -> None:
        fonts._load.cache_clear()  # it keeps fonts by the names of their files
        draw_layout(poster, 256, 256, choose_face("Alps é", file))

    return Case(file, examples, byte_strings.mutated, read, (file.name,))


def _prompt_file(world: World, file: Path, examples: tuple[bytes, ...], mutate, strategy) -> Case:
    manifest, encoder = read_manifest(world.bundle), _encoder(world)
    face = choose_face("", None)
    picture = io.BytesIO()
    Image.new("RGB", (256, 256), "white").save(picture, "PNG")
    (file.parent / "house.png").write_bytes(picture.getvalue())

    def read() -> None:
        args = build_parser().parse_args(["--prompt-file", str(file), "--output", str(file.parent / "out.png")])
        defaults = job_from_options(args, ReadPrompt(""))
        reader = PromptReader(_check(file), False, lambda text: None)
        drawn = None
        for where, number, line in read_lines(str(file)):
            job = job_of_line(where, number, line, jsonl_folder(str(file)), defaults, reader)
            check_files([replace(job, where="")], True, Failures(print))  # what has no line is raised
            settings_of(job, job.plan(manifest, encoder), manifest)
            drawn = job if looks_like_json(job.request.prompt) else drawn
        if drawn is not None:  # one of them: that takes longer than all the rest
            draw_layout(caption_of(drawn), 256, 256, face)

    return Case(file, examples, mutate, read, strategy=strategy)


def _check(file: Path) -> str:
    """How captions are checked: by the content, so that each input is read in one way."""
    return CHECKS[file.stat().st_size % len(CHECKS)]


def _mutated_jsonl(random, content: bytes) -> bytes:
    """One line of a JSONL file changed as JSON, or the file as a text."""
    if random.random() < 0.3:
        return texts.mutated_lines(random, content)
    return json_texts.mutated(random, random.choice(content.split(b"\n")))


def _line_values() -> st.SearchStrategy[object]:
    """A line with any value for one of its keys."""
    keys = sorted({key for line in _LINES for key in line} | {"caption", "mask_feather"})
    return st.builds(lambda key, value: {"prompt": "a"} | {key: value}, st.sampled_from(keys), json_values)


def _encoder(world: World) -> PromptEncoder:
    spec = read_manifest(world.bundle).prompt
    return PromptEncoder(world.bundle / spec.tokenizer, spec)


def _font() -> bytes:
    """Pillow's own font."""
    default = ImageFont.load_default(10)
    if not isinstance(default, ImageFont.FreeTypeFont):
        raise RuntimeError("this installation of Pillow has no FreeType, wanted one that draws layouts")
    return default.font_bytes

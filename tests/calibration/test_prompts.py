"""Prompt files, and the one that comes with the package."""

import json
import re

import pytest

from calibration.prompts import DEFAULT_PROMPTS, prompts_sha256, read_prompts
from calibration.reference import prompt_encoder


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return prompt_encoder(checkpoint)


@pytest.fixture
def read(tmp_path, encoder):
    def read(content):
        file = tmp_path / "prompts.txt"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_prompts(file, encoder)

    return read


def test_lines_blanks_and_comments(read):
    assert read("a red circle\n\n  # not this\n#nor this\n  a cat  \r\n\t\nlast, a # inside") == [
        "a red circle",
        "a cat",
        "last, a # inside",
    ]


def test_only_line_feeds_end_lines(read):
    assert read("one\u2028still one\ntwo\x85"[:-1]) == ["one\u2028still one", "two"]


def test_byte_order_mark(read):
    assert read(b"\xef\xbb\xbf# comment\na cat") == ["a cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompt, wanted one to a line"),
        ("\n \n# only this\n", "holds no prompt, wanted one to a line"),
        (b"a cat\na d\xe9j\xe0 vu\n", "line 2: not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\x00", "line 1: not UTF-8 text"),
        ("a cat\n\na\x00dog\n", "line 3: holds the control character U+0000, wanted text"),
        ("a cat\n" + "word " * 3000, "line 2: the prompt has"),
    ],
)
def test_refusals(read, content, message):
    with pytest.raises(ValueError, match=rf"prompts\.txt(, | ){re.escape(message)}"):
        read(content)


def test_no_file(tmp_path, encoder):
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none.txt", encoder)


def test_hash_tells_lists_apart():
    hashes = {prompts_sha256(prompts) for prompts in ([], ["a"], ["a", "b"], ["b", "a"], ["ab"], ["a\nb"], ['a", "b'])}
    assert len(hashes) == 7
    # printf '["a"]' | sha256sum: the hash must stay the same, or no run continues where another one stopped.
    assert prompts_sha256(["a"]) == "0eb5b8d6f81bc677da8a08567cc4fa9a06a57e9ec8da85ed73a7f62727996002"


PROMPTS = DEFAULT_PROMPTS.read_text(encoding="utf-8").splitlines()
CAPTIONS = [line for line in PROMPTS if line.startswith("{")]


def test_our_prompts_are_many_and_varied(encoder):
    prompts = read_prompts(DEFAULT_PROMPTS, encoder)
    assert len(prompts) == len(set(prompts)) >= 64
    assert len(CAPTIONS) >= 20 and all(line in prompts for line in CAPTIONS)
    assert min(map(len, prompts)) < 5 and max(map(len, prompts)) > 1000
    for script in "а-я", "\u4e00-\u9fff", "\u3040-\u30ff", "\uac00-\ud7af", "\u0600-\u06ff", "\u0900-\u097f", "äöüß":
        assert any(re.search(f"[{script}]", prompt) for prompt in prompts), script


@pytest.mark.parametrize("line", CAPTIONS, ids=lambda line: line[26:60])
def test_our_captions_are_in_the_models_schema(line):
    """Keys, their order and the values' forms, as the released code checks them."""
    caption = json.loads(line)
    assert json.dumps(caption, ensure_ascii=False, separators=(",", ":")) == line
    in_order(caption, ("high_level_description", "style_description", "compositional_deconstruction"), 1)
    if style := caption.get("style_description"):
        last = ("photo", "medium") if "photo" in style else ("medium", "art_style")
        in_order(style, ("aesthetics", "lighting", *last, "color_palette"), 4)
        check_palette(style, 16)
    in_order(caption["compositional_deconstruction"], ("background", "elements"), 2)
    for element in caption["compositional_deconstruction"]["elements"]:
        middle = ("text", "desc") if element["type"] == "text" else ("desc",)
        in_order(element, ("type", "bbox", *middle, "color_palette"), 1 + len(middle))
        check_palette(element, 5)
        top, left, bottom, right = element.get("bbox", (0, 0, 1000, 1000))
        assert 0 <= top < bottom <= 1000 and 0 <= left < right <= 1000


def in_order(found, keys, required):
    assert list(found) == [key for key in keys if key in found] and len(found) >= required


def check_palette(part, most):
    palette = part.get("color_palette", ["#000000"])
    assert 1 <= len(palette) <= most and all(re.fullmatch("#[0-9A-F]{6}", color) for color in palette)

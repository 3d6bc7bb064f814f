"""Layouts of captions, and the colours that they choose."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont
from support.caption_examples import POSTER, captions, colours

from runtime.layout import fonts
from runtime.layout.colours import BLACK, READABLE, WHITE, contrast, ink, mix, parse_colour
from runtime.layout.drawing import PAPER, _fit, draw_layout
from runtime.layout.fonts import Face, choose_face
from runtime.prompt.caption import Caption, Element


def drawn(caption, width=400, height=300):
    return draw_layout(caption, width, height, OWN).astype(int)


OWN = Face(None, "")
"""Pillow's own font, so that the tests see the same letters everywhere."""


def boxed(bbox, desc="", colour="#C8553D", **fields):
    return Caption("", (Element("obj", desc, bbox=bbox, color_palette=(colour,), **fields),))


def written(box, text, colour="#16324F"):
    return Caption("", (Element("text", "d", text=text, bbox=box, color_palette=(colour,)),))


def dark(picture):
    """Where something dark is written; paper, fills and the grid are light."""
    return picture.max(axis=2) < 140


def test_boxes_are_where_the_caption_says():
    """bbox is [ymin, xmin, ymax, xmax] in thousandths: rows 60 to 240 and columns 40 to 200 of 300 x 400."""
    picture = drawn(boxed((200, 100, 800, 500)))
    inside, outside = picture[200, 150], picture[200, 250]
    assert np.abs(outside - PAPER).max() <= 1
    filled = np.array(mix(parse_colour("#C8553D"), PAPER, 36 / 255))
    assert np.abs(inside - filled).max() <= 2  # rounded twice: when it is blended and when it is made smaller
    off = np.abs(picture - parse_colour("#C8553D")).max(axis=2)
    for rows, columns in ((150, slice(39, 43)), (150, slice(198, 202)), (slice(59, 63), 120), (slice(238, 242), 120)):
        assert off[rows, columns].min() <= 40  # the edge is a pixel and a half wide, and smoothed


def test_letters_are_as_large_as_fits_and_in_the_middle():
    def letters(top, bottom):
        """Rows and columns of dark pixels inside the box, away from its edges and its number."""
        picture = drawn(written((top, 100, bottom, 900), "HELLO"))
        return np.nonzero(dark(picture)[top * 3 // 10 + 6 : bottom * 3 // 10 - 6, 65:335])

    (_, small), (rows, large) = letters(400, 550), letters(200, 800)
    assert np.ptp(large) > 1.3 * np.ptp(small)
    # From the middle of the box, 84 rows below the slice's start and 135 columns right of it; letters have no weight
    # that is even on all sides.
    assert abs(rows.mean() - 84) < 10 and abs(large.mean() - 135) < 10


def test_description_stays_in_its_box():
    picture = drawn(boxed((100, 200, 500, 700), "A long description of many words. " * 40, "#16324F"))
    rows, columns = np.nonzero(dark(picture))
    assert rows.min() >= 28 and rows.max() <= 152 and columns.min() >= 78 and columns.max() <= 282
    assert dark(picture)[40:140, 100:270].sum() > 500, "nothing is written in the box"


def test_large_boxes_write_around_small_ones():
    words = "words " * 200
    alone = Caption("", (Element("obj", words, bbox=(0, 0, 1000, 1000), color_palette=("#16324F",)),))
    small = Element("obj", "", bbox=(300, 300, 700, 700), color_palette=("#E9A23B",))
    both = replace(alone, elements=(*alone.elements, small))
    inner = (slice(110, 190), slice(140, 260))
    assert dark(drawn(alone))[inner].sum() > 200
    assert dark(drawn(both))[inner].sum() == 0


def test_elements_without_a_box_and_the_background_are_listed():
    empty = dark(drawn(Caption(""))).sum()
    background = dark(drawn(Caption("a quiet street"))).sum()
    listed = dark(drawn(Caption("a quiet street", (Element("obj", "a lamp, somewhere"),)))).sum()
    assert empty == 0 and background > 50 and listed > background + 50


def test_colours_come_from_the_palettes():
    """The second element has none of its own: the style's first colour that shows on paper, which white does not."""
    picture = drawn(POSTER)
    for colour in ("#C8553D", "#2D6A6A"):
        assert (np.abs(picture - parse_colour(colour)).max(axis=2) <= 4).sum() > 100, colour


def test_same_caption_same_bytes():
    assert np.array_equal(draw_layout(POSTER, 320, 256, OWN), draw_layout(POSTER, 320, 256, OWN))
    assert not np.array_equal(draw_layout(POSTER, 320, 256, OWN), draw_layout(POSTER, 256, 320, OWN))


@settings(max_examples=40)
@given(captions, st.sampled_from([(256, 256), (512, 96), (96, 512)]))
def test_any_caption_can_be_drawn(caption, size):
    assert drawn(caption, *size).shape == (size[1], size[0], 3)


def test_line_breaks_anywhere():
    text = "one\ntwo\r\n\nthree\u2028four"
    everywhere = (
        Element("text", text, text=text),
        Element("obj", text),
        Element("obj", text, bbox=(0, 0, 500, 500)),
        Element("text", text, text=text, bbox=(500, 500, 1000, 1000)),
    )
    assert dark(drawn(Caption(text, everywhere))).sum() > 200


@settings(max_examples=200)
@given(
    st.lists(st.text("abcdefgh", min_size=1, max_size=30), min_size=1, max_size=8), st.integers(0, 400), st.booleans()
)
def test_lines_fit_and_lose_nothing(words, width, last):
    font = OWN.sized(16)
    line, rest = _fit(words, font, width, last)
    assert not line or font.getlength(line) <= width
    if not last:
        assert (line + "".join(rest)).replace(" ", "") == "".join(words)
    elif line and line != " ".join(words):
        assert line.endswith(" …") and " ".join(words).startswith(line.removesuffix(" …"))


def test_scripts_without_spaces_are_cut():
    picture = drawn(boxed((100, 100, 900, 900), "x" * 400, "#16324F"))
    rows, _ = np.nonzero(dark(picture)[40:260, 60:340])
    assert np.ptp(rows) > 60, "one line only"


@pytest.fixture
def font_file(tmp_path):
    """Pillow's own font as a file."""
    (tmp_path / "own.ttf").write_bytes(ImageFont.load_default(10).path.getvalue())
    return tmp_path / "own.ttf"


def test_font_files(font_file, tmp_path):
    face = choose_face("abc", font_file)
    assert face == Face(str(font_file), "")
    assert face.sized(20).getlength("HELLO") == pytest.approx(
        OWN.sized(20).getlength("HELLO"), rel=0.1
    )  # kerned or not
    (tmp_path / "font.ttf").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"font.ttf is not a font that FreeType reads"):
        choose_face("abc", tmp_path / "font.ttf")
    with pytest.raises(FileNotFoundError, match="missing"):
        choose_face("abc", tmp_path / "missing.ttf")


def test_missing_letters_are_told(font_file):
    ascii_letters = "".join(map(chr, range(33, 127)))
    assert choose_face(ascii_letters + " \n\x07\xa0", font_file).missing == ""
    assert choose_face("Zwölf 蓝 蓝 Ł", font_file).missing == "öŁ蓝"


def test_a_font_of_the_system_is_taken_when_it_has_more_letters(font_file, monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("not installed.ttf", str(font_file)))
    assert choose_face("abc", None) == Face(None, "")
    assert choose_face("abc ö", None) == Face(None, "ö"), "the other has no more"
    real = fonts._missing
    monkeypatch.setattr(fonts, "_missing", lambda file, text: real(file, text) if file is None else "")
    assert choose_face("abc ö", None) == Face(str(font_file), "")


@given(colours.map(parse_colour), colours.map(parse_colour))
def test_ink_can_be_read_on_any_paper(colour, paper):
    assert contrast(ink(colour, paper), paper) >= READABLE


def test_ink_keeps_a_colour_that_can_be_read():
    assert ink((0, 0, 128), WHITE) == (0, 0, 128)


def test_contrast_of_black_and_white():
    """WCAG's definition gives 21 to 1; #767676 is its well-known darkest grey that still passes on white."""
    assert contrast(BLACK, WHITE) == contrast(WHITE, BLACK) == pytest.approx(21)
    assert contrast(parse_colour("#767676"), WHITE) >= READABLE > contrast(parse_colour("#777777"), WHITE)

"""Captions: what is written, what is read, and what is refused in which words."""

import copy
import json

import pytest
from hypothesis import given
from support.caption_examples import POSTER, POSTER_LINE, captions

from runtime import Caption
from runtime.prompt.caption import CaptionError, Element, Style, examine, read_json
from runtime.prompt.reading import PromptReader, read_text

PHOTO = {
    "high_level_description": "a dog",
    "style_description": {"aesthetics": "warm", "lighting": "sun", "photo": "85mm", "medium": "photograph"},
    "compositional_deconstruction": {
        "background": "a street",
        "elements": [
            {"type": "obj", "bbox": [200, 300, 800, 900], "desc": "a dog", "color_palette": ["#F5C542"]},
            {"type": "text", "bbox": [0, 0, 100, 1000], "text": "HELLO", "desc": "a sign"},
            {"type": "obj", "desc": "a lamp"},
        ],
    },
}
STYLE, COMPOSITION = "style_description", "compositional_deconstruction"


def reader(check="error", wrap=False):
    warnings = []
    return PromptReader(check, wrap, warnings.append), warnings


# What is written and read


@given(captions)
def test_what_is_written_is_read_again(caption):
    line = str(caption)
    assert "\n" not in line and Caption.parse(line) == caption and str(Caption.parse(line)) == line
    assert line == json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":"))


@given(captions)
def test_layout_of_the_file_does_not_matter(caption):
    assert Caption.parse(json.dumps(json.loads(str(caption)), indent=4)) == caption


def test_line_is_the_original_codes():
    """Byte for byte: order of the keys, no spaces, nothing for what is not given."""
    assert str(POSTER) == POSTER_LINE
    photo = Caption("b", (), Style("a", "l", "m", photo="p"))
    assert str(photo) == (
        '{"style_description":{"aesthetics":"a","lighting":"l","photo":"p","medium":"m"},'
        '"compositional_deconstruction":{"background":"b","elements":[]}}'
    )


def test_letters_of_all_scripts_stay():
    line = str(Caption('蓝色 "quoted"\n🙂'))
    assert line == '{"compositional_deconstruction":{"background":"蓝色 \\"quoted\\"\\n🙂","elements":[]}}'


def test_wrapped_text():
    assert str(Caption.wrap("a red circle")) == (
        '{"high_level_description":"a red circle","compositional_deconstruction":'
        '{"background":"","elements":[{"type":"obj","desc":"a red circle"}]}}'
    )
    with pytest.raises(ValueError, match="the prompt is empty"):
        Caption.wrap(" \n")


# What is refused


def changed(path, value):
    """PHOTO with another value at `path`; `...` takes the key away."""
    caption = copy.deepcopy(PHOTO)
    *parents, last = path
    place = caption
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return caption


def element(index, key, value):
    return changed((COMPOSITION, "elements", index, key), value)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ([], r"it is \[\], wanted an object"),
        ({}, "it lacks the key compositional_deconstruction"),
        (PHOTO | {"aspect_ratio": "1:1"}, "it has the key 'aspect_ratio', wanted only high_level_description, style"),
        (
            dict(reversed(PHOTO.items())),
            "it has its keys in the order compositional_deconstruction, style_description, "
            "high_level_description, wanted high_level_description, style_description, compositional_deconstruction",
        ),
        (changed(("high_level_description",), 3), "high_level_description is 3, wanted text"),
        (changed((STYLE,), "warm"), "style_description is 'warm', wanted an object"),
        (changed((STYLE, "art_style"), "flat"), "style_description has both photo and art_style, wanted one"),
        (changed((STYLE, "photo"), ...), "style_description lacks photo .* or art_style"),
        (changed((STYLE, "lighting"), ...), "style_description lacks the key lighting"),
        (changed((STYLE, "lighting"), None), "style_description.lighting is None, wanted text"),
        (changed((STYLE, "mood"), "x"), "style_description has the key 'mood', wanted only aesthetics, lighting"),
        (
            changed((STYLE, "color_palette"), ["#FFFFFF"] * 17),
            "style_description.color_palette has 17 colours, wanted at most 16",
        ),
        (changed((STYLE, "color_palette"), "#FFFFFF"), "style_description.color_palette is '#FFFFFF', wanted a list"),
        (
            changed((STYLE, "color_palette"), ["#FFFFFF", "#fff"]),
            r"style_description.color_palette\[1\] is '#fff', "
            "wanted #RRGGBB with upper-case digits",
        ),
        (changed((COMPOSITION,), None), "compositional_deconstruction is None, wanted an object"),
        (changed((COMPOSITION, "background"), ...), "compositional_deconstruction lacks the key background"),
        (changed((COMPOSITION, "background"), ["a"]), r"deconstruction.background is \['a'\], wanted text"),
        (changed((COMPOSITION, "elements"), ...), "compositional_deconstruction lacks the key elements"),
        (changed((COMPOSITION, "elements"), {}), "compositional_deconstruction.elements is {}, wanted a list"),
        (
            changed((COMPOSITION,), {"elements": [], "background": ""}),
            "deconstruction has its keys in the order elements, background, wanted background, elements",
        ),
        (changed((COMPOSITION, "elements", 1), "x"), r"elements\[1\] is 'x', wanted an object"),
        (element(0, "type", ...), r"elements\[0\] lacks the key type"),
        (element(0, "type", "object"), r"elements\[0\].type is 'object', wanted 'obj' or 'text'"),
        (element(0, "type", ["obj"]), r"elements\[0\].type is \['obj'\], wanted 'obj' or 'text'"),
        (element(2, "desc", ...), r"elements\[2\] lacks the key desc"),
        (element(1, "text", ...), r"elements\[1\] lacks the key text"),
        (element(1, "text", 7), r"elements\[1\].text is 7, wanted text"),
        (element(2, "text", "x"), r"elements\[2\] has the key 'text', wanted only type, bbox, desc, color_palette"),
        (element(2, "bbox", [0, 0, 1, 1]), r"elements\[2\] has its keys in the order type, desc, bbox, wanted type"),
        (
            element(0, "bbox", [0, 1200, 1, 1300]),
            r"elements\[0\].bbox\[1\] is 1200, wanted 0 to 1000; "
            r"elements\[0\].bbox\[3\] is 1300",
        ),
        (element(0, "bbox", [-1, 0, 1, 1]), r"elements\[0\].bbox\[0\] is -1, wanted 0 to 1000"),
        (element(0, "bbox", [0, 0, 1]), r"elements\[0\].bbox is \[0, 0, 1\], wanted \[ymin, xmin, ymax, xmax\]"),
        (element(0, "bbox", [0, 0, 1, 0.5]), r"elements\[0\].bbox\[3\] is 0.5, wanted an integer"),
        (element(0, "bbox", [0, 0, True, 1]), r"elements\[0\].bbox\[2\] is True, wanted an integer"),
        (element(0, "bbox", [9, 0, 1, 1]), r"elements\[0\].bbox has ymin 9 above ymax 1"),
        (element(0, "bbox", [0, 9, 1, 1]), r"elements\[0\].bbox has xmin 9 above xmax 1"),
        (element(0, "color_palette", ["#FFFFFF"] * 6), r"elements\[0\].color_palette has 6 colours, wanted at most 5"),
        (element(0, "color_palette", ["white"]), r"elements\[0\].color_palette\[0\] is 'white', wanted #RRGGBB"),
        (element(0, "desc", "x\ud800"), r"elements\[0\].desc has half of a surrogate pair at character 1"),
    ],
)
def test_refused_captions(caption, message):
    with pytest.raises(CaptionError, match=message):
        Caption.from_json(caption)
    with pytest.raises(CaptionError, match=message):
        Caption.parse(json.dumps(caption))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red circle", "it is not JSON: Expecting value: line 1 column 1"),
        ('{"a": 1, "a": 2}', "it is not JSON: the key 'a' is there twice"),
        ('{"a": NaN}', "it is not JSON: NaN is not a number"),
        ("[" * 100_000, "it is nested too deeply"),
        ("9" * 5000, "it is not JSON: Exceeds the limit"),
    ],
)
def test_refused_json(text, message):
    with pytest.raises(CaptionError, match=message):
        Caption.parse(text)


def test_deep_values_can_be_shown():
    text = json.dumps(changed((COMPOSITION, "background"), 0)).replace(": 0", ": " + "[" * 900 + "]" * 900)
    with pytest.raises(CaptionError, match=r"background is \[\[\[.*, wanted text"):
        Caption.parse(text)


def test_all_defects_are_told_and_counted():
    elements = [{"type": "obj", "desc": index} for index in range(12)]
    with pytest.raises(
        CaptionError, match=r"elements\[0\].desc is 0, .* elements\[9\].desc is 9, .*; and 2 more"
    ) as told:
        Caption.from_json({COMPOSITION: {"background": "", "elements": elements}})
    assert len(told.value.defects) == 12 and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Caption(3), "background is 3, wanted text"),
        (lambda: Caption("", (Element("obj", "d", text="x"),)), r"elements\[0\] has the key 'text'"),
        (lambda: Caption("", (Element("text", "d"),)), r"elements\[0\] lacks the key text"),
        (lambda: Caption("", (Element("thing", "d"),)), r"elements\[0\].type is 'thing'"),
        (lambda: Caption("", (Element("obj", "d", bbox=(0, 0, 0, 2000)),)), r"elements\[0\].bbox\[3\] is 2000"),
        (lambda: Caption("", (), Style("a", "l", "m")), "style_description lacks photo"),
        (lambda: Caption("", (), Style("a", "l", "m", "p", "s")), "has both photo and art_style"),
    ],
)
def test_a_caption_cannot_be_made_wrong(make, message):
    with pytest.raises(CaptionError, match=message):
        make()


# What a user gives


def test_plain_text_and_captions_in_order_pass_as_they_are():
    spaced = json.dumps(PHOTO, indent=1)
    for text in ("a red circle", "", "[cat] on a mat", POSTER_LINE, spaced):
        assert reader()[0].prompt(text).text == text


def test_wrapping_leaves_captions_alone():
    wrapping = reader(wrap=True)[0]
    assert wrapping.prompt("a red circle").text == str(Caption.wrap("a red circle"))
    assert wrapping.prompt(POSTER_LINE).text == POSTER_LINE


@pytest.mark.parametrize("text", ['{"a": 1}', '{"compositional_deconstruction":', "{a} and {b}"])
def test_a_prompt_that_looks_like_a_caption(text):
    with pytest.raises(CaptionError, match=r"not in order: .*; --check-caption off takes any text"):
        reader()[0].prompt(text)
    warned, warnings = reader("warn")
    assert warned.prompt(text).text == text and warnings == [
        f"the caption is not in order: {d}" for d in examine(text)[1]
    ]
    silent, warnings = reader("off")
    assert silent.prompt(text).text == text and not warnings


def test_a_caption_is_read_once():
    """What a layout draws later: the caption where one was checked and is in order, else nothing."""
    checked = reader()[0]
    assert checked.prompt(POSTER_LINE).caption == checked.caption_text(POSTER_LINE).caption == POSTER
    assert reader(wrap=True)[0].prompt("a red circle").caption == Caption.wrap("a red circle")
    assert checked.prompt("a red circle").caption is None
    assert reader("off")[0].prompt(POSTER_LINE).caption is None
    assert reader("warn")[0].prompt('{"a": 1}').caption is None


def test_a_caption_file_is_put_on_one_line_whatever_the_check():
    wrong = {"compositional_deconstruction": {"elements": [], "background": "蓝"}}
    for check, count in (("warn", 1), ("off", 0)):
        lenient, warnings = reader(check)
        assert lenient.caption_text(json.dumps(wrong, indent=2)).text == json.dumps(
            wrong, ensure_ascii=False, separators=(",", ":")
        )
        assert len(warnings) == count
    with pytest.raises(CaptionError, match="it is not JSON"):
        reader("off")[0].caption_text("a red circle")


@pytest.mark.parametrize(("text", "found"), [("蓝", 1), ("é", 1), ("\x1f", 0), ("\\u4e00", 0), ('"', 0)])
def test_escapes_in_a_prompt(text, found):
    """The model would read the escapes, letter by letter; those that JSON needs are no defect."""
    prompt = json.dumps({COMPOSITION: {"background": text, "elements": []}})
    assert len(examine(prompt)[1]) == found
    assert Caption.parse(prompt).background == text


def test_escapes_beside_letters_are_meant():
    prompt = '{"compositional_deconstruction":{"background":"蓝 \\u84dd","elements":[]}}'
    assert examine(prompt)[1] == []


def test_text_files(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert read_text(str(tmp_path / "a")) == "café"
    (tmp_path / "b").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="is not UTF-8 text: byte 3 is invalid"):
        read_text(str(tmp_path / "b"))


def test_json_values_keep_their_order():
    assert list(read_json('{"b": 1, "a": 2}')) == ["b", "a"]

"""Scenes, captions and held-out combinations."""

import json

import numpy as np
import pytest

from training.captions import caption, json_caption, plain_caption, short_caption
from training.questions import KINDS, questions
from training.scenes import COLORS, SIZE, Element, Scene, draw, is_held_out, sample_scene
from training.tokenizer import PREFIX, SUFFIX, make_tokenizer

RED_CIRCLE = Element("circle", "red", 21.0, 64.0, 20.0)
BLUE_STAR = Element("star", "blue", 96.0, 96.0, 28.0, "large")
SCENE = Scene("white", (RED_CIRCLE, BLUE_STAR))


def scenes(count):
    random = np.random.default_rng(0)
    return [sample_scene(random) for _ in range(count)]


def test_pixels_are_the_palettes():
    picture = draw(SCENE)
    assert (picture.shape, picture.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert tuple(picture[0, 0]) == COLORS["white"]
    assert tuple(picture[64, 21]) == COLORS["red"]
    assert tuple(picture[96, 96]) == COLORS["blue"]


def test_same_seed_same_scenes():
    assert scenes(20) == scenes(20)


def test_elements_stay_inside_and_apart():
    for scene in scenes(500):
        assert 1 <= len(scene.elements) <= 3
        boxes = [element.box for element in scene.elements]
        assert all(min(left, top) > 0 and max(right, bottom) < SIZE for left, top, right, bottom in boxes)
        for index, a in enumerate(boxes):
            for b in boxes[:index]:
                assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], scene


def test_training_never_shows_what_the_evaluation_asks():
    shown = {(e.color, e.kind, e.place, s.background) for s in scenes(3000) for e in s.elements if not e.is_word}
    asked = {
        (e.color, e.kind, e.place, q.scene.background)
        for kind in KINDS
        for q in questions(kind, 200)
        for e in q.scene.elements
    }
    assert len(shown) > 1000 and len(asked) >= 200
    assert not shown & asked
    assert all(is_held_out(*combination) for combination in asked)


def test_captions():
    assert (
        plain_caption(SCENE)
        == "a red circle at the left and a large blue star at the bottom right on a white background"
    )
    assert short_caption(SCENE) == "red circle left, large blue star bottom right, white background"
    data = json.loads(json_caption(SCENE))["compositional_deconstruction"]
    assert data["background"] == "white"
    # Top, left, bottom, right in thousandths: 44 to 84 pixels of 128 down, 1 to 41 across.
    assert data["elements"][0] == {"type": "obj", "bbox": [344, 8, 656, 320], "desc": "a red circle"}
    assert [list(element) for element in data["elements"]] == [["type", "bbox", "desc"]] * 2
    word = Scene("black", (Element("SUN", "yellow", 64.0, 64.0, 13.0),))
    assert plain_caption(word) == 'the word "SUN" in yellow at the center on a black background'
    assert json.loads(json_caption(word))["compositional_deconstruction"]["elements"][0]["text"] == "SUN"


def test_scenes_off_the_grid_are_described_by_boxes():
    scene = Scene("white", (Element("circle", "red", 50.0, 50.0, 20.0, named_place=False),))
    random = np.random.default_rng(0)
    assert all(caption(scene, random).startswith("{") for _ in range(20))


def test_words_of_the_grammar_are_single_tokens():
    tokenizer = make_tokenizer()
    for scene in scenes(50):
        text = plain_caption(scene) if not any(e.is_word for e in scene.elements) else "a red heart"
        assert [t.removeprefix("Ġ") for t in tokenizer.encode(text).tokens] == text.split()
    ids = tokenizer.encode(PREFIX + "x" + SUFFIX).tokens
    assert ids[0] == "<|im_start|>" and ids[-3:] == ["<|im_start|>", "assistant", "Ċ"]


def test_bad_questions():
    with pytest.raises(ValueError, match="kind of question is 'three', wanted one of one, json, two"):
        questions("three", 1)
    with pytest.raises(ValueError, match="number of questions is 100000, wanted 1 to"):
        questions("one", 100_000)

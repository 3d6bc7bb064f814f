"""The judge against drawings whose content is known."""

import numpy as np
import pytest

from training.judge import Verdict, analyze, judge
from training.questions import KINDS, questions
from training.scenes import SIZE, Element, Scene, draw

RIGHT = Verdict(True, True, True, True)
SCENE = Scene("white", (Element("star", "red", 21.0, 64.0, 20.0),))


@pytest.mark.parametrize("kind", KINDS)
def test_ground_truth_is_right(kind):
    assert [judge(draw(q.scene), q.scene) for q in questions(kind, 100)] == [RIGHT] * 100


def test_blur_and_noise_of_a_decoder_do_not_matter():
    """Three-pixel averages and noise of 8 levels are more than the autoencoder's error."""
    random = np.random.default_rng(0)
    for question in questions("one", 50):
        picture = draw(question.scene).astype(float)
        blurred = sum(np.roll(picture, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
        noisy = np.clip(blurred + random.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        assert judge(noisy, question.scene) == RIGHT, question.prompt


@pytest.mark.parametrize(
    ("drawn", "verdict"),
    [
        (Scene("cyan", SCENE.elements), Verdict(False, True, True, True)),
        (Scene("white", (Element("star", "blue", 21.0, 64.0, 20.0),)), Verdict(True, False, True, True)),
        (Scene("white", (Element("star", "red", 64.0, 64.0, 20.0),)), Verdict(True, True, False, True)),
        (Scene("white", (Element("heart", "red", 21.0, 64.0, 20.0),)), Verdict(True, True, True, False)),
        (Scene("white", ()), Verdict(True, False, False, False)),
    ],
)
def test_each_aspect_fails_alone(drawn, verdict):
    assert judge(draw(drawn), SCENE) == verdict


def test_both_of_two_shapes_must_be_right():
    asked = Scene("white", (Element("star", "red", 21.0, 21.0, 20.0), Element("ring", "blue", 107.0, 107.0, 20.0)))
    swapped = Scene("white", (Element("star", "blue", 21.0, 21.0, 20.0), Element("ring", "red", 107.0, 107.0, 20.0)))
    assert judge(draw(asked), asked) == RIGHT
    assert judge(draw(swapped), asked) == Verdict(True, False, True, True)
    missing = Scene("white", asked.elements[:1])
    assert judge(draw(missing), asked) == Verdict(True, False, False, False)


def test_specks_are_no_regions():
    picture = np.full((SIZE, SIZE, 3), 250, dtype=np.uint8)
    picture[10:15, 10:15] = 0
    assert analyze(picture) == ("white", [])

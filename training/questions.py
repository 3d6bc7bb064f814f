"""The prompts of the evaluation: combinations of colour, shape, place and background that training never showed."""

from dataclasses import dataclass, replace

import numpy as np

from training.captions import json_caption, plain_caption
from training.scenes import COLORS, PLACES, RADII, SHAPES, Element, Scene, cell_center, is_held_out

KINDS = ("one", "json", "two")
"""One shape in a sentence, one shape in a JSON caption with its box, two shapes in a sentence."""
_SEED = 9


@dataclass(frozen=True)
class Question:
    """A prompt and what it asks for."""

    prompt: str
    scene: Scene


def questions(kind: str, count: int) -> list[Question]:
    """The first `count` questions of a kind, in a fixed random order; the sizes alternate.

    Raises:
        ValueError: the kind is unknown, or there are fewer held-out combinations.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind of question is {kind!r}, wanted one of {', '.join(KINDS)}")
    scenes = _single_scenes()
    if kind == "two":
        scenes = [pair for scene in scenes if (pair := _with_partner(scene, scenes))]
    if not 1 <= count <= len(scenes):
        raise ValueError(f"the number of questions is {count}, wanted 1 to {len(scenes)}")
    write = json_caption if kind == "json" else plain_caption
    return [Question(write(scene), scene) for scene in scenes[:count]]


def _single_scenes() -> list[Scene]:
    combinations = [
        (color, shape, place, background)
        for color in COLORS
        for shape in SHAPES
        for place in PLACES
        for background in COLORS
        if color != background and is_held_out(color, shape, place, background)
    ]
    order = np.random.default_rng(_SEED).permutation(len(combinations))
    sizes = tuple(RADII)
    return [_scene(*combinations[row], size=sizes[turn % len(sizes)]) for turn, row in enumerate(order)]


def _scene(color: str, shape: str, place: str, background: str, size: str) -> Scene:
    radius = sum(RADII[size]) / 2
    low, high = radius + 4, 124 - radius
    x, y = (min(max(value, low), high) for value in cell_center(place))
    return Scene(background, (Element(shape, color, x, y, radius, size),))


def _with_partner(scene: Scene, others: list[Scene]) -> Scene | None:
    """The scene and the first other held-out shape that fits on its background, in another row and column."""
    first = scene.elements[0]
    row, column = divmod(PLACES.index(first.place), 3)
    for other in others:
        second = other.elements[0]
        apart = PLACES.index(second.place) // 3 != row and PLACES.index(second.place) % 3 != column
        if other.background == scene.background and apart and (second.color, second.kind) != (first.color, first.kind):
            return Scene(scene.background, (_medium(first), _medium(second)))
    return None


def _medium(element: Element) -> Element:
    x, y = cell_center(element.place)
    radius = sum(RADII[""]) / 2
    low, high = radius + 4, 124 - radius
    return replace(element, x=min(max(x, low), high), y=min(max(y, low), high), radius=radius, size="")

"""What a scene is called: a plain sentence, or an Ideogram 4 JSON caption with boxes in thousandths."""

import json

import numpy as np

from training.scenes import COLORS, SIZE, Element, Scene, sample_scene

JSON_SHARE = 0.06
"""Share of JSON captions for scenes whose places have names; scenes without are always described in JSON."""
_WITHOUT_PLACE, _SHORT = 0.1, 0.25


def caption(scene: Scene, random: np.random.Generator) -> str:
    """One of the scene's captions: JSON or a sentence, with or without the place, long or short."""
    if not all(element.named_place for element in scene.elements) or random.random() < JSON_SHARE:
        return json_caption(scene)
    if len(scene.elements) == 1 and random.random() < _WITHOUT_PLACE:
        return f"{_phrase(scene.elements[0])} on a {scene.background} background"
    return short_caption(scene) if random.random() < _SHORT else plain_caption(scene)


def plain_caption(scene: Scene) -> str:
    """``a large red circle at the top left and a blue star at the center on a white background``."""
    parts = [f"{_phrase(element)} at the {element.place}" for element in scene.elements]
    return f"{' and '.join(parts)} on a {scene.background} background"


def short_caption(scene: Scene) -> str:
    """``large red circle top left, blue star center, white background``."""
    parts = [f"{_noun(element)} {element.place}" for element in scene.elements]
    return f"{', '.join(parts)}, {scene.background} background"


def json_caption(scene: Scene) -> str:
    """The minified caption that Ideogram 4 was trained on: description, background, elements with their boxes."""
    elements = [
        {"type": "text", "bbox": _bbox(element), "text": element.kind, "desc": f"{element.color} letters"}
        if element.is_word
        else {"type": "obj", "bbox": _bbox(element), "desc": f"a {_noun(element)}"}
        for element in scene.elements
    ]
    data = {"compositional_deconstruction": {"background": scene.background, "elements": elements}}
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False)


def corpus() -> list[str]:
    """Captions that hold every word of the grammar, for the tokenizer and for nothing else."""
    random = np.random.default_rng(0)
    scenes = [sample_scene(random) for _ in range(4000)]
    palette = [f"#{r:02X}{g:02X}{b:02X}" for r, g, b in COLORS.values()]
    return [caption(scene, random) for scene in scenes] + palette


def _phrase(element: Element) -> str:
    if element.is_word:
        return f'the word "{element.kind}" in {element.color}'
    return f"a {_noun(element)}"


def _noun(element: Element) -> str:
    if element.is_word:
        return f'"{element.kind}" {element.color}'
    return f"{element.size} {element.color} {element.kind}".strip()


def _bbox(element: Element) -> list[int]:
    """Top, left, bottom, right in thousandths of the picture."""
    left, top, right, bottom = element.box
    return [round(1000 * value / SIZE) for value in (top, left, bottom, right)]

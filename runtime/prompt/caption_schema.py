"""What an Ideogram 4 caption may be: every way in which a JSON value is not one, with the key that is wrong.

The rules are those of the original code (`ideogram4` ``caption_verifier.py`` and ``docs/prompting.md``), which refuses
what breaks them: the keys in the order of the training captions, one of ``photo`` and ``art_style``, boxes as four
integers from 0 to 1000, palettes of upper-case ``#RRGGBB``. Beyond the original, which does not look there, the three
keys of the caption itself have their documented order, every description is text, and no number is a boolean.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.errors import shown

CAPTION_KEYS = ("high_level_description", "style_description", "compositional_deconstruction")
PHOTO_KEYS = ("aesthetics", "lighting", "photo", "medium", "color_palette")
ART_KEYS = ("aesthetics", "lighting", "medium", "art_style", "color_palette")
COMPOSITION_KEYS = ("background", "elements")
ELEMENT_KEYS = {
    "obj": ("type", "bbox", "desc", "color_palette"),
    "text": ("type", "bbox", "text", "desc", "color_palette"),
}
OPTIONAL_KEYS = frozenset({"high_level_description", "style_description", "bbox", "color_palette"})
BBOX = ("ymin", "xmin", "ymax", "xmax")
BBOX_LIMIT = 1000
"""Boxes count thousandths of the picture's height and width from its top left corner."""
STYLE_PALETTE_LIMIT, ELEMENT_PALETTE_LIMIT = 16, 5


def defects(value: Any) -> Iterator[str]:
    """Yield what keeps a JSON value from being a caption; nothing for one that is in order."""
    if not isinstance(value, dict):
        yield f"it is {shown(value)}, wanted an object"
        return
    yield from _key_defects(value, CAPTION_KEYS, "it")
    yield from _text_defects(value, ("high_level_description",), "")
    if "style_description" in value:
        yield from _style_defects(value["style_description"])
    if "compositional_deconstruction" in value:
        yield from _composition_defects(value["compositional_deconstruction"])


def _style_defects(style: Any) -> Iterator[str]:
    where = "style_description"
    if not isinstance(style, dict):
        yield f"{where} is {shown(style)}, wanted an object"
        return
    if "photo" in style and "art_style" in style:
        yield f"{where} has both photo and art_style, wanted one of them"
        return
    if "photo" not in style and "art_style" not in style:
        yield f"{where} lacks photo (for photographs) or art_style (for everything else)"
        return
    keys = PHOTO_KEYS if "photo" in style else ART_KEYS
    yield from _key_defects(style, keys, where)
    yield from _text_defects(style, keys[:-1], where + ".")
    yield from _palette_defects(style, STYLE_PALETTE_LIMIT, where)


def _composition_defects(composition: Any) -> Iterator[str]:
    where = "compositional_deconstruction"
    if not isinstance(composition, dict):
        yield f"{where} is {shown(composition)}, wanted an object"
        return
    yield from _key_defects(composition, COMPOSITION_KEYS, where)
    yield from _text_defects(composition, ("background",), where + ".")
    elements = composition.get("elements", [])
    if not isinstance(elements, list):
        yield f"{where}.elements is {shown(elements)}, wanted a list"
        return
    for index, element in enumerate(elements):
        yield from _element_defects(element, f"elements[{index}]")


def _element_defects(element: Any, where: str) -> Iterator[str]:
    if not isinstance(element, dict):
        yield f"{where} is {shown(element)}, wanted an object"
        return
    if "type" not in element:
        yield f"{where} lacks the key type"
        return
    kind = element["type"]
    if not isinstance(kind, str) or kind not in ELEMENT_KEYS:
        yield f"{where}.type is {shown(kind)}, wanted 'obj' or 'text'"
        return
    yield from _key_defects(element, ELEMENT_KEYS[kind], where)
    yield from _text_defects(element, ("text", "desc"), where + ".")
    if "bbox" in element:
        yield from _bbox_defects(element["bbox"], where + ".bbox")
    yield from _palette_defects(element, ELEMENT_PALETTE_LIMIT, where)


def _key_defects(value: Mapping[str, Any], keys: Sequence[str], where: str) -> Iterator[str]:
    """Unknown and missing keys; the order only when those are right."""
    unknown = [key for key in value if key not in keys]
    missing = [key for key in keys if key not in value and key not in OPTIONAL_KEYS]
    for key in unknown:
        yield f"{where} has the key {shown(key)}, wanted only {', '.join(keys)}"
    for key in missing:
        yield f"{where} lacks the key {key}"
    wanted = [key for key in keys if key in value]
    if not unknown and list(value) != wanted:
        yield f"{where} has its keys in the order {', '.join(value)}, wanted {', '.join(wanted)}"


def _text_defects(value: Mapping[str, Any], keys: Sequence[str], prefix: str) -> Iterator[str]:
    for key in keys:
        if key not in value:
            continue
        text = value[key]
        if not isinstance(text, str):
            yield f"{prefix}{key} is {shown(text)}, wanted text"
        elif (place := _lone_surrogate(text)) is not None:
            yield f"{prefix}{key} has half of a surrogate pair at character {place}, wanted valid Unicode"


def _lone_surrogate(text: str) -> int | None:
    """Place of the first character that UTF-8 cannot hold, which JSON's escapes can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def _bbox_defects(bbox: Any, where: str) -> Iterator[str]:
    if not isinstance(bbox, list) or len(bbox) != len(BBOX):
        yield f"{where} is {shown(bbox)}, wanted [{', '.join(BBOX)}]"
        return
    wrong = [place for place, edge in enumerate(bbox) if type(edge) is not int]
    for place in wrong:
        yield f"{where}[{place}] is {shown(bbox[place])}, wanted an integer"
    if wrong:
        return
    for place, edge in enumerate(bbox):
        if not 0 <= edge <= BBOX_LIMIT:
            yield f"{where}[{place}] is {shown(edge)}, wanted 0 to {BBOX_LIMIT}"
    for first, last in ((0, 2), (1, 3)):
        if bbox[first] > bbox[last]:
            yield f"{where} has {BBOX[first]} {shown(bbox[first])} above {BBOX[last]} {shown(bbox[last])}"


def _palette_defects(value: Mapping[str, Any], limit: int, prefix: str) -> Iterator[str]:
    if "color_palette" not in value:
        return
    palette, where = value["color_palette"], prefix + ".color_palette"
    if not isinstance(palette, list):
        yield f"{where} is {shown(palette)}, wanted a list"
        return
    if len(palette) > limit:
        yield f"{where} has {len(palette)} colours, wanted at most {limit}"
    for place, colour in enumerate(palette):
        if not _is_colour(colour):
            yield f"{where}[{place}] is {shown(colour)}, wanted #RRGGBB with upper-case digits"


def _is_colour(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 7 and value[0] == "#" and set(value[1:]) <= set("0123456789ABCDEF")

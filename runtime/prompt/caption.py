"""Ideogram 4 captions: the structured JSON that the model was trained on.

The model reads one line of JSON with fixed keys in a fixed order (`runtime.prompt.caption_schema` has the rules).
`Caption` holds such a caption, and only a correct one; ``str(caption)`` is the line: no spaces, letters of every script
as they are. That is how the original code writes what it feeds to the model (``separators=(",", ":")``,
``ensure_ascii=False``).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import Any, Literal

from runtime.errors import RequestError, shown
from runtime.prompt.caption_schema import ART_KEYS, ELEMENT_KEYS, PHOTO_KEYS, defects

CHECKS = ("error", "warn", "off")
"""What becomes of a caption that is not in order: refused, used with a warning, or used."""
_LISTED = 10
_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*\\u(?!00[0-7])[0-9a-fA-F]{4}")


class CaptionError(RequestError):
    """A caption is not in order."""

    def __init__(self, found: Sequence[str], hint: str = "") -> None:
        """`found`: the defects, at least one. `hint`: what the message ends with."""
        more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        super().__init__(f"the caption is not in order: {'; '.join(found[:_LISTED])}{more}{hint}")
        self.defects = tuple(found)


@dataclass(frozen=True)
class Style:
    """How the picture looks: a photograph has `photo`, everything else `art_style`."""

    aesthetics: str
    lighting: str
    medium: str
    photo: str | None = None
    art_style: str | None = None
    color_palette: tuple[str, ...] | None = None
    """At most 16 colours ``#RRGGBB``."""


@dataclass(frozen=True)
class Element:
    """One thing in the picture, or one piece of writing in it."""

    type: Literal["obj", "text"]
    desc: str
    text: str | None = None
    """The letters to be drawn; for ``text`` only."""
    bbox: tuple[int, int, int, int] | None = None
    """(ymin, xmin, ymax, xmax) in thousandths of the picture, from its top left corner."""
    color_palette: tuple[str, ...] | None = None
    """At most 5 colours ``#RRGGBB``."""


@dataclass(frozen=True)
class Caption:
    """A caption in order; CaptionError otherwise."""

    background: str
    elements: tuple[Element, ...] = ()
    style: Style | None = None
    high_level_description: str | None = None
    """One or two sentences; recommended."""
    checked: InitVar[bool] = False
    """Whether what the caption is made of has been checked already."""

    def __post_init__(self, checked: bool) -> None:
        if not checked and (found := list(defects(self.to_dict()))):
            raise CaptionError(found)

    @classmethod
    def parse(cls, text: str) -> "Caption":
        """Read a JSON caption; CaptionError lists all that is wrong with it."""
        return cls.from_json(read_json(text))

    @classmethod
    def from_json(cls, value: Any) -> "Caption":
        """A caption from a JSON value; CaptionError lists all that is wrong with it."""
        if found := list(defects(value)):
            raise CaptionError(found)
        return cls.from_checked(value)

    @classmethod
    def from_checked(cls, value: Any) -> "Caption":
        """A caption from a JSON value in which `runtime.prompt.caption_schema.defects` has found nothing."""
        style, composition = value.get("style_description"), value["compositional_deconstruction"]
        return cls(
            composition["background"],
            tuple(Element(**_frozen(element)) for element in composition["elements"]),
            None if style is None else Style(**_frozen(style)),
            value.get("high_level_description"),
            checked=True,
        )

    @classmethod
    def wrap(cls, text: str) -> "Caption":
        """The smallest caption of a plain text, as ai-toolkit makes it: a description and one object.

        Raises:
            RequestError: the text is empty or blank.
        """
        if not text.strip():
            raise RequestError("the prompt is empty, wanted some text")
        return cls("", (Element("obj", text),), high_level_description=text)

    def to_dict(self) -> dict[str, Any]:
        """The caption as JSON values, its keys in order; what is None is left out."""
        top: dict[str, Any] = {}
        if self.high_level_description is not None:
            top["high_level_description"] = self.high_level_description
        if self.style is not None:
            # The one key that the other kind of style lacks comes last, so that having both is noticed.
            keys = (*ART_KEYS, "photo") if self.style.photo is None else (*PHOTO_KEYS, "art_style")
            top["style_description"] = _present(self.style, keys)
        elements = [
            _present(element, (*ELEMENT_KEYS.get(element.type, ("type",)), "text")) for element in self.elements
        ]
        return top | {"compositional_deconstruction": {"background": self.background, "elements": elements}}

    def __str__(self) -> str:
        """The caption as the model reads it, on one line."""
        return one_line(self.to_dict())


def one_line(value: Any) -> str:
    """A JSON value as the original code writes captions; CaptionError when it is nested too deeply."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise CaptionError(["it is nested too deeply"]) from None


def read_json(text: str) -> Any:
    """Read JSON strictly: no key twice, no NaN; CaptionError says where it ends being JSON."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise CaptionError(["it is nested too deeply"]) from None
    except ValueError as error:
        raise CaptionError([f"it is not JSON: {error}"]) from error


def looks_like_json(prompt: str) -> bool:
    """Whether a prompt is meant as a caption and not as plain text."""
    return prompt.lstrip().startswith("{")


def examine(prompt: str) -> tuple[Caption | None, list[str]]:
    """The caption that a prompt is, if it is one in order, and all that is wrong with it; neither for plain text.

    The prompt goes to the model exactly as it is written, so letters that are written as escapes count as a defect, but
    not of the caption.
    """
    if not looks_like_json(prompt):
        return None, []
    try:
        value = read_json(prompt)
    except CaptionError as error:
        return None, list(error.defects)
    found = list(defects(value))
    return None if found else Caption.from_checked(value), [*found, *_escapes(prompt)]


def _escapes(prompt: str) -> list[str]:
    """The defect of a JSON prompt that writes letters as escapes, which the model has not seen; else nothing."""
    if prompt.isascii() and (escape := _ESCAPE.search(prompt)):
        return [f"it writes letters as escapes ({escape.group()[-6:]}), wanted the letters (ensure_ascii=False)"]
    return []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {shown(key)} is there twice")
        value[key] = item
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _frozen(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


def _present(part: Style | Element, keys: Sequence[str]) -> dict[str, Any]:
    values = {key: getattr(part, key) for key in dict.fromkeys(keys) if getattr(part, key) is not None}
    return {key: list(item) if isinstance(item, tuple) else item for key, item in values.items()}

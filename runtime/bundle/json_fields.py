"""JSON values to frozen dataclasses, checked against their annotations. Nothing unknown, missing or mistyped passes."""

import json
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from runtime.errors import SHOWN, cut, shown

Kind = TypeVar("Kind")
_MOST_BITS = 64
"""Of an integer: sizes, counts and seeds have no more, and with any number of them sums and quotients may fail."""
DEEPEST = 100
"""Levels of arrays and objects inside each other; no file of ours or of the libraries whose files are read has ten."""


class DecodeError(ValueError):
    """A JSON value is not of the wanted form; the message has its path, the value, and what was wanted."""


def parse(text: str | bytes, where: str) -> Any:
    """The value of a JSON text; DecodeError says why there is none, and names `where` it stands."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise DecodeError(f"{where} is nested too deeply, wanted at most {DEEPEST} levels") from None
    except ValueError as error:  # bytes that are not UTF-8 among them
        raise DecodeError(f"{where} is not JSON: {error}") from error
    _check_depth(value, where)
    return value


def _check_depth(value: Any, where: str) -> None:
    """What passes can be shown, compared and written again without a `RecursionError`."""
    level, depth = _inside([[value]]), 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise DecodeError(f"{where} is nested too deeply, wanted at most {DEEPEST} levels")
        level = _inside(level)


def _inside(level: list[Any]) -> list[Any]:
    """The arrays and objects in those of a level."""
    items = (item for part in level for item in (part.values() if isinstance(part, dict) else part))
    return [item for item in items if isinstance(item, dict | list)]


def decode(value: Any, kind: type[Kind], root: str) -> Kind:
    """An instance of the dataclass `kind` from a JSON object; DecodeError says what is wrong.

    Fields may be bool, int, float, str, None, literals, tuples (lists in JSON), dicts with str keys, other dataclasses,
    and unions of plain types or of anything with None. Fields with a default may be missing. `root` is what messages
    call the object itself.
    """
    return _object(value, kind, "", root)


def _object(value: Any, kind: type[Kind], where: str, root: str) -> Kind:
    what = where or root
    if not isinstance(value, dict):
        raise DecodeError(f"{what} is {shown(value)}, wanted an object")
    needed = {field.name: field.default is MISSING for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    if unknown := sorted(set(value) - set(needed)):
        raise DecodeError(f"{what} has the unknown key {shown(unknown[0])}; a newer version may have made it")
    if missing := [name for name in needed if needed[name] and name not in value]:
        raise DecodeError(f"{what} lacks the key {shown(missing[0])}")
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    given = [name for name in needed if name in value]
    return kind(**{name: _value(value[name], hints[name], prefix + name, root) for name in given})


def _value(value: Any, kind: Any, where: str, root: str) -> Any:
    if is_dataclass(kind):
        return _object(value, kind, where, root)  # type: ignore[arg-type]  # a class, not an instance
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(value):
            pairs = enumerate(zip(value, kinds, strict=True))
            return tuple(_value(item, k, f"{where}[{i}]", root) for i, (item, k) in pairs)
    if origin is dict and isinstance(value, dict):
        return {key: _value(item, arguments[1], f"{where}.{cut(key, SHOWN)}", root) for key, item in value.items()}
    if origin is types.UnionType and is_dataclass(arguments[0]):
        return None if value is None else _value(value, arguments[0], where, root)
    if origin is types.UnionType and type(value) in arguments:
        return value
    if origin is Literal and type(value) is str and value in arguments:
        return value
    if kind is float and type(value) in (int, float):  # a bool is an int, and no number here
        return _float(value, where)
    if kind is int and type(value) is int and value.bit_length() > _MOST_BITS:
        raise DecodeError(f"{where} is {shown(value)}, wanted at most {_MOST_BITS} bits")
    if origin is None and kind is not float and type(value) is kind:
        return value
    raise DecodeError(f"{where} is {shown(value)}, wanted {_wanted(kind)}")


def _float(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise DecodeError(f"{where} is an integer of {int(value).bit_length()} bits, wanted a number") from None


def _wanted(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is dict:
        return "an object"
    return getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind)

"""JSON texts that are not what a program wants: wrong values, wrong keys, and what only looks like JSON."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from scripts.fuzz.mutation import byte_strings
from scripts.fuzz.mutation.texts import ODD, odd, written


class Token(str):
    """A value that is written as it stands."""


class Pairs(list[tuple[str, Any]]):
    """An object: its keys and values in order. A key may be there twice."""


Slot = tuple[list[Any], int]
"""A list or an object, and the place of a value in it."""

_NUMBERS = ("0", "-0", "-0.0", "1", "-1", "2", "3", "0.5", "1e-400", "1e308", "1e400", "-1e400", "1E5", "2147483648")
_NUMBERS += ("4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1.0", "-7", "1000000")
_TOKENS = (
    *_NUMBERS,
    *("NaN", "Infinity", "-Infinity", "1" * 400, "1" * 5000, "-" + "9" * 400, "01", "+1", ".5", "0x1", "1.", "'a'"),
    *("true", "false", "null", "undefined", "[]", "{}", '""', "[null]", '{"": null}', "[[]]", "[0,0,0]", ""),
    *('"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\x41"', '"unfinished', "/* */ 1"),
    *("[" * depth + "]" * depth for depth in (30, 500, 5000, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (30, 500, 100_000)),
    "[" * 5000,
    "[" + ",".join("0" * 20_000) + "]",
    "[" + ",".join(['"a"'] * 5000) + "]",
    "{" + ",".join(f'"{number}": {number}' for number in range(3000)) + "}",
)
"""Numbers at the edges of types, what is no JSON but resembles it, depths that end Python's stack, much of a kind."""


def mutated(random: Random, content: bytes) -> bytes:
    """A JSON text, UTF-8, with one change or several in its values, its keys or its letters."""
    if random.random() < 0.1:
        return byte_strings.mutated(random, content)
    return written(random, text_of(random, changed(random, read(content))))


def read(content: bytes) -> Any:
    """A JSON text as lists, `Pairs` and plain values."""
    return json.loads(content, object_pairs_hook=Pairs)


def changed(random: Random, value: Any) -> Any:
    """A value, of which this takes possession, with changes; see the module's docstring."""
    root = [value]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if places := slots(root):
            random.choice(_CHANGES)(random, *random.choice(places))
    return root[0] if root else Token("")


def slots(container: list[Any]) -> list[Slot]:
    """The places of all values inside a list or an object, and inside what it holds."""
    found: list[Slot] = []
    left = [container]
    while left:
        where = left.pop()
        for place, item in enumerate(where):
            found.append((where, place))
            value = item[1] if isinstance(where, Pairs) else item
            if isinstance(value, list):
                left.append(value)
    return found


def text_of(random: Random, value: Any) -> str:
    """The text of a value, in one of the ways to write it."""
    text = _text(value, random.random() < 0.5)
    if random.random() < 0.05:
        text += random.choice((" ", "\n", "}", ",", "\0", text))
    return text


def plain(value: Any) -> str:
    """The text of a value that may hold `Token` and `Pairs`, without anything odd."""
    return _text(value, ascii_only=True)


def _text(value: Any, ascii_only: bool) -> str:
    if isinstance(value, Token):
        return str(value)
    if isinstance(value, Pairs):
        entries = (f"{json.dumps(key, ensure_ascii=ascii_only)}: {_text(item, ascii_only)}" for key, item in value)
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_text(item, ascii_only) for item in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def _put(where: list[Any], place: int, value: Any) -> None:
    where[place] = (where[place][0], value) if isinstance(where, Pairs) else value


def _got(where: list[Any], place: int) -> Any:
    return where[place][1] if isinstance(where, Pairs) else where[place]


def _replace(random: Random, where: list[Any], place: int) -> None:
    _put(where, place, Token(random.choice(_TOKENS)) if random.random() < 0.7 else random.choice(ODD))


def _adjust(random: Random, where: list[Any], place: int) -> None:
    """A value like the one that is there."""
    value = _got(where, place)
    if isinstance(value, bool) or value is None:
        _put(where, place, random.choice((True, False, None, 0, 1)))
    elif isinstance(value, int | float):
        factor = random.choice((-1, 2, 1000, 10**9, 10**30))
        _put(where, place, random.choice((value + 1, value - 1, value * factor, value / 3, str(value), [value])))
    elif isinstance(value, str):
        cut = random.randrange(len(value) + 1)
        _put(
            where, place, random.choice((value[:cut] + odd(random) + value[cut:], value[:cut], value.upper(), [value]))
        )
    elif isinstance(value, Pairs):
        random.shuffle(value)
    else:
        value *= random.choice((0, 2, 3, 1000))


def _remove(random: Random, where: list[Any], place: int) -> None:
    del where[place]


def _repeat(random: Random, where: list[Any], place: int) -> None:
    where.insert(random.randrange(len(where) + 1), where[place])


def _swap(random: Random, where: list[Any], place: int) -> None:
    other = random.randrange(len(where))
    values = _got(where, place), _got(where, other)
    _put(where, place, values[1])
    _put(where, other, values[0])


def _rename(random: Random, where: list[Any], place: int) -> None:
    """Another key; in a list, another value."""
    if isinstance(where, Pairs):
        key, value = where[place]
        where[place] = (random.choice((odd(random), key.upper(), key + "x", random.choice(where)[0])), value)
    else:
        _replace(random, where, place)


def _add(random: Random, where: list[Any], place: int) -> None:
    value = Token(random.choice(_TOKENS))
    where.insert(place, (odd(random), value) if isinstance(where, Pairs) else value)


def _wrap(random: Random, where: list[Any], place: int) -> None:
    value = _got(where, place)
    _put(where, place, random.choice(([value], Pairs([("a", value)]), [value] * 50)))


def _set_twice(random: Random, where: list[Any], place: int) -> None:
    """The same key with another value behind it."""
    if isinstance(where, Pairs):
        where.insert(place + 1, (where[place][0], Token(random.choice(_TOKENS))))
    else:
        _replace(random, where, place)


_CHANGES: tuple[Callable[[Random, list[Any], int], None], ...] = (
    _replace,
    _replace,
    _replace,
    _adjust,
    _adjust,
    _remove,
    _repeat,
    _swap,
    _rename,
    _add,
    _wrap,
    _set_twice,
)

"""Safetensors files: the header's JSON changed with its length put right, or wrong, and values that are no numbers."""

import struct
from random import Random
from typing import Any

from scripts.fuzz.mutation import byte_strings, json_texts
from scripts.fuzz.mutation.json_texts import Pairs, Token

_METADATA = "__metadata__"
_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I64", "I8", "U8", "BOOL", "C64", "f32")
_SHAPES = ("[]", "[0]", "[1]", "[-1]", "[0,9]", "[1e3]", "[9223372036854775807,2]", "[[2]]", "[true]", '["2"]', "7")
_VALUES = tuple(struct.pack("<f", value) for value in (float("nan"), float("inf"), -1.0, 0.0, 1e-45, 3.4e38))


def mutated(random: Random, content: bytes) -> bytes:
    """A file with one part of it broken."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    what = random.random()
    if what < 0.15:
        return byte_strings.mutated(random, content)
    if what < 0.3:
        return content[: 8 + size] + _other_values(random, data)
    tree = json_texts.read(header)
    if what < 0.65:
        _change_entry(random, tree)
    else:
        tree = json_texts.changed(random, tree)
    text = json_texts.text_of(random, tree).encode("utf-8", "surrogatepass")
    return _length(random, len(text)) + text + (data[: random.randrange(len(data) + 1)] if what > 0.95 else data)


def mutated_metadata(random: Random, content: bytes) -> bytes:
    """The same, with JSON texts inside the header's metadata changed as often as the rest."""
    size = int.from_bytes(content[:8], "little")
    tree = json_texts.read(content[8 : 8 + size])
    places = [place for place, (key, _) in enumerate(tree) if key == _METADATA]
    if not places or random.random() < 0.5:
        return mutated(random, content)
    metadata = tree[places[0]][1]
    place = random.randrange(len(metadata))
    key, value = metadata[place]
    changed = json_texts.mutated(random, value.encode()) if value.startswith("{") else json_texts.ODD[place].encode()
    metadata[place] = (key, changed.decode("utf-8", "replace"))
    text = json_texts.text_of(random, tree).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _change_entry(random: Random, tree: Pairs) -> None:
    """Another type, shape or place for one tensor."""
    place = random.choice([place for place, (key, _) in enumerate(tree) if key != _METADATA])
    name, entry = tree[place]
    entry = dict(entry)
    begin, end = entry["data_offsets"]
    wrong: dict[str, Any] = {
        "dtype": random.choice(_TYPES),
        "shape": random.choice((Token(random.choice(_SHAPES)), [*entry["shape"], 1], entry["shape"][::-1])),
        "data_offsets": random.choice(
            ([end, begin], [0, end], [begin, end + 1], [begin, begin], [-1, end], [begin, 1 << 62], [begin], [0.5, end])
        ),
    }
    for key in random.choice((("dtype",), ("shape",), ("data_offsets",), ("dtype", "shape"), tuple(wrong))):
        entry[key] = wrong[key]
    tree[place] = (random.choice((name, name, name, name.upper(), name + ".weight", "")), Pairs(entry.items()))


def _other_values(random: Random, data: bytes) -> bytes:
    """Numbers that no weight is, here and there or everywhere."""
    value = random.choice(_VALUES)
    if random.random() < 0.3:
        return (value * (len(data) // 4 + 1))[: len(data)]
    changed = bytearray(data)
    for _ in range(random.choice((1, 10, 1000))):
        place = random.randrange(max(1, len(data) // 4)) * 4
        changed[place : place + 4] = value[: len(changed) - place]
    return bytes(changed)


def _length(random: Random, size: int) -> bytes:
    wrong = random.choice((0, 1, size - 1, size + 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1))
    return (wrong if random.random() < 0.1 else size).to_bytes(8, "little")

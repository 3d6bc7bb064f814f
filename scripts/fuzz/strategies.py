"""Inputs by hypothesis: any value in the place of one that belongs there."""

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from scripts.fuzz.mutation import json_texts
from scripts.fuzz.mutation.json_texts import Pairs, Token

texts = st.text(st.characters(), max_size=40) | st.sampled_from(("\ud800", "../x", "/x", "NaN", "\x1b[2J"))
integers = st.integers() | st.sampled_from((-1, 0, 1 << 31, 1 << 63, 1 << 64, 10**400))
numbers = integers | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(texts, parts, max_size=4),
    max_leaves=12,
)
"""Values of any type that JSON has, NaN and halves of characters among them."""


def replaced(examples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """JSON texts in which any value stands in the place of one that belongs there."""
    trees = [json_texts.read(example) for example in examples]
    counts = [len(json_texts.slots([tree])) for tree in trees]
    return st.sampled_from(range(len(trees))).flatmap(
        lambda which: st.builds(
            lambda place, value: _with(trees[which], place, value), st.integers(0, counts[which] - 1), json_values
        )
    )


def replaced_header(example: bytes) -> st.SearchStrategy[bytes]:
    """Safetensors files with such a text as their header."""
    size = int.from_bytes(example[:8], "little")
    headers = replaced([example[8 : 8 + size]])
    return headers.map(lambda text: len(text).to_bytes(8, "little") + text + example[8 + size :])


def _with(tree: Any, place: int, value: Any) -> bytes:
    root = [copy.deepcopy(tree)]
    where, index = json_texts.slots(root)[place]
    token = Token(json.dumps(value))
    where[index] = (where[index][0], token) if isinstance(where, Pairs) else token
    return json_texts.plain(root[0]).encode()

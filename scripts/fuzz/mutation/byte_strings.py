"""Bytes that are changed, lost, repeated or put elsewhere."""

from collections.abc import Callable
from random import Random

_LARGEST_PIECE = 1 << 12
_INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
"""Lengths and offsets that programs get wrong."""


def mutated(random: Random, content: bytes) -> bytes:
    """`content` with one change or several."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        content = random.choice(_CHANGES)(random, content)
    return content


def _flipped(random: Random, content: bytes) -> bytes:
    if not content:
        return content
    place = random.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << random.randrange(8))]) + content[place + 1 :]


def _written(random: Random, content: bytes) -> bytes:
    """An integer of some size and byte order in the place of what is there."""
    size = random.choice((1, 2, 4, 8))
    value = random.choice(_INTEGERS) & ((1 << 8 * size) - 1)
    place = _place(random, content)
    return content[:place] + value.to_bytes(size, random.choice(("little", "big"))) + content[place + size :]


def _inserted(random: Random, content: bytes) -> bytes:
    place = _place(random, content)
    return content[:place] + random.randbytes(random.randrange(1, 32)) + content[place:]


def _deleted(random: Random, content: bytes) -> bytes:
    start, stop = _piece(random, content)
    return content[:start] + content[stop:]


def _repeated(random: Random, content: bytes) -> bytes:
    start, stop = _piece(random, content)
    return content[:stop] + content[start:stop] * random.choice((1, 2, 100)) + content[stop:]


def _zeroed(random: Random, content: bytes) -> bytes:
    start, stop = _piece(random, content)
    return content[:start] + bytes([random.choice((0, 0xFF))]) * (stop - start) + content[stop:]


def _moved(random: Random, content: bytes) -> bytes:
    start, stop = _piece(random, content)
    rest = content[:start] + content[stop:]
    place = _place(random, rest)
    return rest[:place] + content[start:stop] + rest[place:]


def _cut(random: Random, content: bytes) -> bytes:
    return content[: _place(random, content)]


def _lengthened(random: Random, content: bytes) -> bytes:
    return content + random.choice((b"\0", b"\n", b"\xff", random.randbytes(100)))


_CHANGES: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flipped,
    _flipped,
    _written,
    _written,
    _inserted,
    _deleted,
    _repeated,
    _zeroed,
    _moved,
    _cut,
    _lengthened,
)


def _place(random: Random, content: bytes) -> int:
    """A place to cut at; the beginning, where headers are, more often than any other."""
    return random.randrange(min(len(content), 64) + 1 if random.random() < 0.3 else len(content) + 1)


def _piece(random: Random, content: bytes) -> tuple[int, int]:
    start = _place(random, content)
    return start, min(len(content), start + random.randrange(1, _LARGEST_PIECE))

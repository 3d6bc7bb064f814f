"""Picture files: chunks and segments that lie about sizes, unpack to far more than they are, or are not in order."""

import struct
import zlib
from random import Random

from scripts.fuzz.mutation import byte_strings

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDES = (0, 1, 2, 4097, 9000, 16383, 16384, 65535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
_BOMB = zlib.compress(bytes(64 << 20), 9)
"""64 MB of zeros in 64 kB."""
_EXIF = b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0%c\0\0\x87\x69\0\x04\0\0\0\x01%b\0\0\0\0"
_CHUNKS = (
    (b"zTXt", b"ideogram4\0\0" + _BOMB),
    (b"iTXt", b"ideogram4\0\x01\0\0\0" + _BOMB),
    (b"iTXt", b"ideogram4\0\0\0\0\0" + b"[" * 100_000),
    (b"iTXt", b'ideogram4\0\0\0\0\0{"seed": NaN, "seed": "\xff"}'),
    (b"iCCP", b"x\0\0" + _BOMB),
    (b"tEXt", b"ideogram4\0" + b"x" * 100_000),
    (b"tRNS", b"\0\0"),
    (b"PLTE", b"\0\0\0"),
    (b"acTL", struct.pack(">II", (1 << 32) - 1, 0)),
    (b"gAMA", b"\0"),
    (b"xxxx", b""),
)


def mutated(random: Random, content: bytes) -> bytes:
    """A picture file with one part of it broken."""
    if random.random() < 0.4:
        return byte_strings.mutated(random, content)
    if content.startswith(_SIGNATURE):
        return _png(random, content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(random, content)
    return _resized(random, content)


def _png(random: Random, content: bytes) -> bytes:
    chunks = _chunks(content) or [(b"IHDR", b"")]
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(chunks))
        kind, data = chunks[place]
        what = random.randrange(6)
        if what == 0:
            chunks.insert(random.randrange(1, len(chunks) + 1), random.choice(_CHUNKS))
        elif what == 1:
            chunks[place] = (kind, _header(random, data)) if kind == b"IHDR" and len(data) == 13 else (b"IHDR", data)
        elif what == 2:
            chunks[place] = (kind, byte_strings.mutated(random, data))
        elif what == 3:
            chunks.insert(1, (b"eXIf", _exif(random)))
        elif what == 4 and len(chunks) > 1:
            del chunks[place]
        else:
            chunks.insert(random.randrange(len(chunks)), chunks[place])
    return _SIGNATURE + b"".join(_packed(random, *chunk) for chunk in chunks)


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and data of each chunk of a PNG file, as far as it has any."""
    found, place = [], len(_SIGNATURE)
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        found.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += size + 12
    return found


def _packed(random: Random, kind: bytes, data: bytes) -> bytes:
    size = len(data) if random.random() < 0.97 else random.choice((0, len(data) + 1, (1 << 31) - 1))
    check = zlib.crc32(kind + data) ^ (random.random() < 0.03)
    return struct.pack(">I", size) + kind + data + struct.pack(">I", check)


def _header(random: Random, data: bytes) -> bytes:
    """An IHDR chunk: width, height, bits, colours, and how it is packed."""
    width, height, *rest = struct.unpack(">IIBBBBB", data)
    if random.random() < 0.7:
        width, height = random.choice((width, *_SIDES)), random.choice((height, *_SIDES))
    else:
        rest = [random.choice((value, 0, 1, 2, 3, 4, 6, 8, 16, 255)) for value in rest]
    return struct.pack(">IIBBBBB", width, height, *rest)


def _exif(random: Random) -> bytes:
    """Exif data with an orientation, of which there are 1 to 8, and a reference that may point to itself."""
    exif = _EXIF % (random.randrange(12), struct.pack(">I", random.choice((0, 8, 10, 1 << 31, 200))))
    return exif if random.random() < 0.5 else byte_strings.mutated(random, exif)


def _jpeg(random: Random, content: bytes) -> bytes:
    """Another size in the frame's header, or Exif data in front."""
    start = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    if start > 0 and random.random() < 0.6:
        sides = [random.choice((*_SIDES[:8], 64)) & 0xFFFF for _ in range(2)]
        return content[: start + 5] + struct.pack(">HH", *sides) + content[start + 9 :]
    exif = b"Exif\0\0" + _exif(random)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", min(len(exif) + 2, 65535)) + exif + content[2:]


def _resized(random: Random, content: bytes) -> bytes:
    """An integer in the header, where other formats have their sizes."""
    place, size = random.randrange(min(64, len(content))), random.choice((2, 4))
    value = random.choice(_SIDES) & ((1 << 8 * size) - 1)
    return content[:place] + value.to_bytes(size, random.choice(("little", "big"))) + content[place + size :]

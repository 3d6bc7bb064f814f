"""Texts that programs stumble over, and prompts, lines and command lines that hold them."""

from random import Random

LONG = "x" * 100_000
ODD = (
    "",
    " ",
    "\n",
    "\t",
    "\0",
    "\x1b[31mred\x1b[0m",
    "\x7f",
    "\u0085",
    "\u2028",
    "\u202eevil",
    "\ufeff",
    "\ud800",
    "\udcff",
    "\U0010ffff",
    "e\u0301" * 2000,
    "名前",
    "../../outside",
    "/etc/passwd",
    "C:\\outside",
    "a/../../outside",
    "~",
    "$(touch outside)",
    "%s%n{}{0}",
    "<script>alert(1)</script>",
    '"',
    "'",
    "\\",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "0",
    "1_000",
    "٣",
    "9" * 5000,
    "0x10",
    "true",
    "null",
    "nan:nan",
    "1x1000000000",
    "{",
    "[" * 5000,
    '{"a":' * 5000,
    LONG,
)
"""Ends of lines, terminals' own sequences, halves of characters, paths that lead outside, numbers that are none."""


def odd(random: Random) -> str:
    """One of them, by itself or several in a row."""
    return "".join(random.choices(ODD, k=random.choice((1, 1, 1, 2, 3))))


def mutated(random: Random, text: str) -> str:
    """`text` with something odd in it, or with parts lost or repeated."""
    for _ in range(random.choice((1, 1, 2, 4))):
        start, stop = sorted(random.choices(range(len(text) + 1), k=2))
        text = random.choice(
            (
                text[:start] + odd(random) + text[start:],
                text[:start] + odd(random) + text[stop:],
                text[:start] + text[stop:],
                text[:stop] + text[start:stop] + text[stop:],
                text[:stop],
            )
        )
    return text


def mutated_lines(random: Random, content: bytes) -> bytes:
    """A text file with lines that are odd, lost, repeated, or ended differently."""
    lines = content.decode("utf-8").split("\n")
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(len(lines))
        what = random.randrange(6)
        if what <= 2:
            lines[place] = mutated(random, lines[place])
        elif what == 3:
            lines.insert(place, odd(random))
        elif what == 4:
            lines[place:place] = [lines[place]] * random.choice((1, 100))
        else:
            lines.append(lines.pop(place))
    return written(random, random.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines))


def written(random: Random, text: str) -> bytes:
    """The bytes of a text file: mostly in UTF-8, some in an encoding that nobody expects."""
    encoding = random.choices(("utf-8", "utf-8-sig", "utf-16", "latin-1"), (20, 1, 1, 1))[0]
    return text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")

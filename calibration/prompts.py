"""Files of prompts."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from runtime.prompt.tokens import PromptEncoder

DEFAULT_PROMPTS = Path(__file__).parent / "prompts.txt"


def read_prompts(file: Path, encoder: PromptEncoder) -> list[str]:
    """The prompts in a UTF-8 file, one to a line; blank lines and lines that start with ``#`` are skipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text, holds no prompt, or a prompt has more tokens than `encoder` takes; the message
            names the line.
    """
    prompts = []
    # Not splitlines, which also splits at characters that editors do not count as line ends.
    for number, line in enumerate(_text(file).split("\n"), start=1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        try:
            _check_characters(prompt)
            encoder.encode(prompt)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{file} holds no prompt, wanted one to a line")
    return prompts


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """`count` of the prompts, or all if there are no more, evenly spread over them."""
    return list(prompts[:: max(1, len(prompts) // count)][:count])


def prompts_sha256(prompts: Sequence[str]) -> str:
    """SHA-256 of the prompts as a JSON list."""
    return hashlib.sha256(json.dumps(list(prompts), ensure_ascii=False).encode("utf-8")).hexdigest()


def _text(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The position counts from behind a byte order mark, which has no line end.
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line}: not UTF-8 text") from error


def _check_characters(prompt: str) -> None:
    for character in prompt:
        if unicodedata.category(character) == "Cc" and character != "\t":
            raise ValueError(f"holds the control character U+{ord(character):04X}, wanted text")

"""What a user gives as a prompt, and the text that the model reads."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import RequestError
from runtime.prompt.caption import Caption, CaptionError, examine, looks_like_json, one_line, read_json
from runtime.prompt.caption_schema import defects
from runtime.prompt.tokens import check_length

STANDARD_INPUT = "-"


def read_text(name: str) -> str:
    """The text of a UTF-8 file, or of standard input for ``-``; a byte order mark is dropped.

    Raises:
        OSError: the file cannot be read.
        RequestError: it is not UTF-8.
    """
    data = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"the file {name} is not UTF-8 text: byte {error.start} is invalid") from error


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt that was read."""

    text: str
    """What the model gets."""
    caption: Caption | None = None
    """The caption that it is, where it was checked and is in order."""


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts and captions by one set of rules; each caption is parsed and checked once."""

    check: str
    """One of `runtime.prompt.caption.CHECKS`: what becomes of a caption that is not in order."""
    wrap: bool
    """Whether plain text is wrapped into a caption."""
    warn: Callable[[str], None]
    """Called with each warning."""

    def prompt(self, text: str) -> ReadPrompt:
        """A prompt as it is written. JSON is checked; plain text may be wrapped.

        Raises:
            CaptionError: it starts like JSON, is not a caption in order, and that is an error.
            RequestError: it is too long, or it is to be wrapped and is blank.
        """
        check_length("the prompt", text)
        if not looks_like_json(text):
            wrapped = Caption.wrap(text) if self.wrap else None
            return ReadPrompt(text if wrapped is None else str(wrapped), wrapped)
        if self.check == "off":
            return ReadPrompt(text)
        caption, found = examine(text)
        self._judge(found, "; --check-caption off takes any text")
        return ReadPrompt(text, caption)

    def caption(self, value: Any) -> ReadPrompt:
        """A caption from a JSON value, on one line; CaptionError when it is not in order and that is an error."""
        found = list(defects(value)) if self.check != "off" else []
        self._judge(found, "")
        sound = self.check != "off" and not found
        return ReadPrompt(one_line(value), Caption.from_checked(value) if sound else None)

    def caption_text(self, text: str) -> ReadPrompt:
        """A caption from JSON text, on one line.

        Raises:
            CaptionError: as `caption`, and when the text is not JSON.
            RequestError: it is longer than any caption.
        """
        check_length("the caption", text)
        return self.caption(read_json(text))

    def _judge(self, found: Sequence[str], hint: str) -> None:
        if found and self.check == "error":
            raise CaptionError(found, hint)
        for defect in found:
            self.warn(f"the caption is not in order: {defect}")

"""What a user gives as a prompt, and the text that the model reads."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.prompt.caption import Caption, CaptionError, looks_like_json, one_line, prompt_defects, read_json
from runtime.prompt.caption_schema import defects

STANDARD_INPUT = "-"


def read_text(name: str) -> str:
    """The text of a UTF-8 file, or of standard input for ``-``; a byte order mark is dropped.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    data = sys.stdin.buffer.read() if name == STANDARD_INPUT else Path(name).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the file {name} is not UTF-8 text: byte {error.start} is invalid") from error


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts and captions by one set of rules."""

    check: str
    """One of `runtime.prompt.caption.CHECKS`: what becomes of a caption that is not in order."""
    wrap: bool
    """Whether plain text is wrapped into a caption."""
    warn: Callable[[str], None]
    """Called with each warning."""

    def prompt(self, text: str) -> str:
        """A prompt as it is written. JSON is checked; plain text may be wrapped.

        Raises:
            CaptionError: it starts like JSON, is not a caption in order, and that is an error.
            ValueError: it is to be wrapped and is blank.
        """
        if not looks_like_json(text):
            return str(Caption.wrap(text)) if self.wrap else text
        if self.check != "off":
            self._judge(prompt_defects(text), "; --check-caption off takes any text")
        return text

    def caption(self, value: Any) -> str:
        """A caption from a JSON value, on one line; CaptionError when it is not in order and that is an error."""
        if self.check != "off":
            self._judge(list(defects(value)), "")
        return one_line(value)

    def caption_text(self, text: str) -> str:
        """A caption from JSON text, on one line; CaptionError also when the text is not JSON."""
        return self.caption(read_json(text))

    def _judge(self, found: Sequence[str], hint: str) -> None:
        if found and self.check == "error":
            raise CaptionError(found, hint)
        for defect in found:
            self.warn(f"the caption is not in order: {defect}")

"""What can go wrong that a caller can cause or meet. Everything else is a defect of this package.

Each error is also the built-in exception that fits it, so that ``except ValueError`` and ``except FileNotFoundError``
mean what they always do. Errors of the operating system that are not ours to word (no permission, a full disk) stay
plain `OSError`, and memory that runs out is `MemoryError`. Messages show values with `shown`, whatever their size.
"""

from reprlib import Repr
from typing import Any

SHOWN = 60
"""Characters of a wrong value that a message shows."""
SAID = 300
"""Characters of what a library says of a file, parts of which it may repeat."""
_short = Repr()  # goes down a few levels only, where repr itself gives up on deep values
_short.maxstring = _short.maxlong = _short.maxother = SHOWN


def shown(value: Any) -> str:
    """A value as messages show it: on one line, and not longer than a line."""
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN:  # Python refuses to print thousands of digits
        return f"an integer of {value.bit_length()} bits"
    return cut(_short.repr(value), SHOWN)


def cut(text: str, length: int) -> str:
    """The beginning of a text, with an ellipsis where more is left out."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


class Ideogram4Error(Exception):
    """Base class of all errors below."""


class RequestError(Ideogram4Error, ValueError):
    """A field of a request, or an argument, is not what this runtime or this bundle takes; the message names it."""


class MissingFileError(Ideogram4Error, FileNotFoundError):
    """There is no such bundle, picture or mask."""


class BundleError(Ideogram4Error, ValueError):
    """A bundle is incomplete, damaged, or of a format that this runtime does not read."""


class BackendError(Ideogram4Error, RuntimeError):
    """ONNX Runtime, TensorRT or CUDA is not there, cannot run the bundle, or failed; the message says what to do."""


class NonFiniteError(Ideogram4Error, RuntimeError):
    """A graph gave NaN or infinity."""


class ClosedError(Ideogram4Error, RuntimeError):
    """The pipeline was closed."""

"""What can go wrong that a caller can cause or meet. Everything else is a defect of this package.

Each error is also the built-in exception that fits it, so that ``except ValueError`` and ``except FileNotFoundError``
mean what they always do. Errors of the operating system that are not ours to word (no permission, a full disk) stay
plain `OSError`, and memory that runs out is `MemoryError`.
"""


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

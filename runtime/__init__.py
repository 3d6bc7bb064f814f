"""Generate pictures from an Ideogram 4 bundle with numpy; no PyTorch.

    from runtime import Pipeline, Request

    with Pipeline.load("bundle") as pipeline:
        made = pipeline.generate("a red circle", width=512, height=512, seed=7)

The names below are the whole public interface. They are resolved on first use, so that importing a light submodule
(``runtime.constants``) does not load numpy or a tokenizer.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.errors import (
        BackendError,
        BundleError,
        ClosedError,
        Ideogram4Error,
        MissingFileError,
        NonFiniteError,
        RequestError,
    )
    from runtime.generated import Generated
    from runtime.pipeline import Pipeline
    from runtime.prompt.caption import Caption, CaptionError
    from runtime.request import Request

__all__ = [
    "BackendError",
    "BundleError",
    "Caption",
    "CaptionError",
    "ClosedError",
    "Generated",
    "Ideogram4Error",
    "MissingFileError",
    "NonFiniteError",
    "Pipeline",
    "Request",
    "RequestError",
]
__version__ = "0.1.0"
"""Of the whole project; pyproject.toml reads it here."""
_HOMES = {
    "Caption": "runtime.prompt.caption",
    "CaptionError": "runtime.prompt.caption",
    "Generated": "runtime.generated",
    "Pipeline": "runtime.pipeline",
    "Request": "runtime.request",
}
"""Modules of the names that are not in `runtime.errors`."""


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "runtime.errors")), name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")

"""Generate pictures from an Ideogram 4 bundle with numpy; no PyTorch.

``from runtime import Caption, Pipeline`` is the whole public interface. The names are resolved on first use, so that
importing a light submodule (``runtime.constants``) does not load numpy or a tokenizer.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.pipeline import Generated, Pipeline
    from runtime.prompt.caption import Caption

__all__ = ["Caption", "Generated", "Pipeline"]
__version__ = "0.1.0"
"""Of the whole project; pyproject.toml reads it here."""


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("runtime.prompt.caption" if name == "Caption" else "runtime.pipeline"), name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")

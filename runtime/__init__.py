"""Generate pictures from an Ideogram 4 bundle with numpy; no PyTorch.

``from runtime import Pipeline`` is the whole public interface. The names are resolved on first use, so that
importing a light submodule (``runtime.constants``) does not load numpy or a tokenizer.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.pipeline import Generated, Pipeline

__all__ = ["Generated", "Pipeline"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from runtime import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'runtime' has no attribute {name!r}")

"""What torch.onnx.export looks up anew for each model although it is the same for all: found once, and used again.

For a model of one layer this was five sixths of the exporter's time: it parses the source of some 500 functions of
torchlib for its registry, and asks the dispatcher for all composite operators once for each of 27 namespaces, twice.
The names are PyTorch's own and not public, which the project's narrow range of PyTorch versions allows.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from torch._export import utils as composites
from torch.onnx._internal.exporter._registration import ONNXRegistry

_make_registry = ONNXRegistry.from_torchlib


@functools.cache
def _registry(opset_version: int) -> ONNXRegistry:
    return _make_registry(opset_version)


def _from_torchlib(cls: type[ONNXRegistry], opset_version: int) -> ONNXRegistry:
    return _registry(opset_version)


@contextlib.contextmanager
def looked_up_once() -> Iterator[None]:
    """While the context is open, the exporter's registry is one for all, and composite operators are asked for once."""
    ask: Any = functools.cache(composites._materialize_cpp_cia_ops)
    with (
        patch.object(ONNXRegistry, "from_torchlib", classmethod(_from_torchlib)),
        patch.object(composites, "_materialize_cpp_cia_ops", ask),
    ):
        yield

"""Change one thing of a bundle and leave its sizes in order, so that nothing but the self-test can notice."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.graph import Call
from runtime.selftest.contents import SELF_TEST, SelfTest, encode, read_self_test

Change = Callable[[np.ndarray], np.ndarray]


class Tampered:
    """A copy of a bundle, to be changed."""

    def __init__(self, bundle: Path, directory: Path) -> None:
        self.directory = Path(shutil.copytree(bundle, directory))

    @classmethod
    def of(cls, directory: Path) -> "Tampered":
        """One that is a copy already."""
        tampered = cls.__new__(cls)
        tampered.directory = directory
        return tampered

    def manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the manifest's JSON."""
        file = self.directory / "manifest.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        change(data)
        file.write_text(json.dumps(data), encoding="utf-8")

    def write(self, path: str, content: bytes) -> None:
        """Replace a file; the manifest gets its size, and a hash that is wrong."""
        (self.directory / path).write_bytes(content)
        spec = {"size": len(content), "sha256": hashlib.sha256(b"").hexdigest()}
        self.manifest(lambda data: data["files"].update({path: spec}))

    def swap(self, one: str, other: str) -> None:
        first, second = ((self.directory / path).read_bytes() for path in (one, other))
        self.write(one, second)
        self.write(other, first)

    def model(self, graph: str, change: Callable[[Any], object]) -> None:
        """Change a graph's ONNX model; its weights stay where they are."""
        import onnx

        path = f"onnx/{graph}.onnx"
        model = onnx.load(self.directory / path, load_external_data=False)
        change(model.graph)
        self.write(path, model.SerializeToString())

    def initializer(self, graph: str, name: str, change: Change) -> None:
        """Change a weight of a graph, in whichever file it is."""
        import onnx

        model = onnx.load(self.directory / f"onnx/{graph}.onnx", load_external_data=False)
        tensor = next(one for one in model.graph.initializer if one.name == name)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if not tensor.external_data:
            value = change(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(dtype), name))
            self.write(f"onnx/{graph}.onnx", model.SerializeToString())
            return
        place = {entry.key: entry.value for entry in tensor.external_data}
        file, offset = self.directory / "onnx" / place["location"], int(place["offset"])
        content = bytearray(file.read_bytes())
        stored = slice(offset, offset + int(place["length"]))
        value = change(np.frombuffer(bytes(content[stored]), dtype).reshape(tuple(tensor.dims)))
        content[stored] = value.astype(dtype).tobytes()
        file.write_bytes(content)

    def self_test(self, change: Callable[[SelfTest], SelfTest]) -> None:
        """Change what the bundle is compared with."""
        self.write(SELF_TEST, encode(change(read_self_test(self.directory))))


def with_output(test: SelfTest, graph: str, change: Change) -> SelfTest:
    """The same with another expected output of a graph's first call."""
    first, *rest = test.calls[graph]
    changed = Call(first.feeds, change(first.output).astype(first.output.dtype))
    return replace(test, calls={**test.calls, graph: (changed, *rest)})


def set_at(index: tuple[int, ...] | int, value: float) -> Change:
    """A change that sets one element."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] = value
        return array

    return change


def scaled_at(index: tuple[int, ...] | int, factor: float) -> Change:
    """A change that multiplies one element."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[index] *= factor
        return array

    return change

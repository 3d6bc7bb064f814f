"""What Triton hands over: the tensors of a request, and a model's configuration.

An input is a JSON object that describes the request; bytes are written as Latin-1 letters. Triton's own module is only
there inside a server, so a stand-in takes the messages as strictly as the server does.
"""

import json
import sys
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from runtime.bundle.manifest import read_manifest
from runtime.pipeline import Pipeline
from runtime.prompt.tokens import PromptEncoder
from scripts.fuzz.case import Case, World
from scripts.fuzz.formats.pictures import examples as picture_examples
from scripts.fuzz.mutation import byte_strings, pictures, texts
from serving.batching import Picture
from serving.settings import DEFAULT_WORK, Limits, read_settings
from serving.shared_memory import Room

_TRITON = "triton_python_backend_utils"
_LONGEST = 500
"""Characters of an error that gRPC carries."""
_PEAK = 512 << 20
"""A picture may have 17 million pixels."""
_TYPES = ("object", "uint8", "int8", "int32", "int64", "uint64", "float16", "float32", "float64", "bool")
_SHAPES = ([], [0], [0, 1], [1], [1, 0], [2, 1], [1, 2], [1, 1, 1], [65, 1], [1, 1000], [1, 1001])
_NUMBERS = (0, -1, 1, 3, 255, 1 << 31, 1 << 63, 16, 250, 256, 2049, 0.5, 1e308, float("nan"), float("inf"), -0.0)
_REQUEST: dict[str, Any] = {
    "tensors": {
        "prompt": {"dtype": "object", "shape": [1, 1], "data": ["a red circle"]},
        "negative_prompt": {"dtype": "object", "shape": [1, 1], "data": ["blue"]},
        "width": {"dtype": "int32", "shape": [1, 1], "data": [256]},
        "height": {"dtype": "int32", "shape": [1, 1], "data": [256]},
        "steps": {"dtype": "int32", "shape": [1, 1], "data": [2]},
        "seed": {"dtype": "int64", "shape": [1, 1], "data": [7]},
        "guidance": {"dtype": "float32", "shape": [1, 2], "data": [7.0, 3.0]},
        "guidance_interval": {"dtype": "float64", "shape": [1, 2], "data": [0.0, 1.0]},
        "mu": {"dtype": "float64", "shape": [1, 1], "data": [0.5]},
        "vae_tile": {"dtype": "object", "shape": [1, 1], "data": ["auto"]},
    },
    "parameters": '{"png": true}',
    "timeout": 1000000,
}


def request(world: World, folder: Path) -> Case:
    """A request's tensors, parameters and time limit; what is wrong with them is answered as the models do.

    The server itself makes the JSON object of the parameters, so its keys and values may be odd but not its form.
    """
    sys.modules.setdefault(_TRITON, _stand_in())
    from serving import wire  # needs Triton's module

    manifest = read_manifest(world.bundle)
    encoder = PromptEncoder(world.bundle / manifest.prompt.tokenizer, manifest.prompt)
    engine: Any = SimpleNamespace(
        pipeline=Pipeline(manifest, {}, encoder, "ort", "cpu"), limits=Limits(4, DEFAULT_WORK, 600.0)
    )
    made = (Picture(np.zeros((16, 16, 3), np.uint8), {"seed": 7}),)
    file = folder / "request.json"

    def read() -> None:
        asked = _Request(json.loads(file.read_bytes()))
        ask = wire.read(engine, asked)
        outcome = wire.answer(asked, ask if isinstance(ask, Exception) else made, Room())
        if asked.answers != 1:
            raise AssertionError(f"the request was answered {asked.answers} times")
        if isinstance(outcome, Exception):
            raise outcome

    return Case(file, (json.dumps(_REQUEST).encode(), _with_pictures()), _mutated, read, peak_bytes=_PEAK)


def settings(world: World, folder: Path) -> Case:
    """The parameters of a model's configuration. What is around them comes from the server itself, and is in order."""
    file = folder / "parameters.json"
    parameters = {"bundle": "bundle", "backend": "ort", "threads": "2", "verify": "auto", "max_seconds": "600"}
    parameters |= {"max_megapixel_steps": "1000", "max_memory_gb": "8", "unload_when_failed": "false"}

    def read() -> None:
        found = json.loads(file.read_bytes())
        entries = {name: {"string_value": str(value)} for name, value in found.items()}
        config = {"max_batch_size": 4, "input": [{"name": "prompt"}], "parameters": entries}
        args = {"model_config": json.dumps(config), "model_name": "ideogram4", "model_version": "1"}
        args |= {"model_instance_kind": "CPU", "model_instance_device_id": "0", "model_repository": "/models"}
        read_settings(args)

    def mutate(random: Random, content: bytes) -> bytes:
        found = json.loads(content)
        for _ in range(random.choice((1, 1, 2))):
            found[random.choice(list(parameters))] = random.choice((texts.odd(random), texts.mutated(random, "600")))
        return json.dumps(found).encode()

    return Case(file, (json.dumps(parameters).encode(),), mutate, read)


class _Request:
    """A request as Triton's Python backend shows it, from its description."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.tensors = {name: _array(**tensor) for name, tensor in described["tensors"].items()}
        self.described = described
        self.answers = 0

    def timeout(self) -> int:
        return self.described["timeout"]

    def parameters(self) -> str:
        return self.described["parameters"]

    def is_cancelled(self) -> bool:
        return False

    def requested_output_names(self) -> list[str]:
        return []

    def get_response_sender(self) -> "_Request":
        return self

    def send(self, response: Any, flags: int = 0) -> None:
        self.answers += 1


def _array(dtype: str, shape: list[int], data: list[Any]) -> np.ndarray:
    """The data, as far as the type can hold it, repeated until the shape is full."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype != "object":
        data = [item for item in data if not isinstance(item, str)] or [1]
        with np.errstate(all="ignore"):
            return np.resize(np.array(data, np.float64), count).astype(dtype).reshape(shape)
    array = np.empty(count, object)
    for place in range(count):
        array[place] = str(data[place % len(data)]).encode("latin-1", "replace")
    return array.reshape(shape)


def _with_pictures() -> bytes:
    file = picture_examples()[0].decode("latin-1")
    pictures = {name: {"dtype": "object", "shape": [1, 1], "data": [file]} for name in ("image", "mask")}
    chosen = {name: _REQUEST["tensors"][name] for name in ("prompt", "width", "height", "seed")}
    fit = {"fit": {"dtype": "object", "shape": [1, 1], "data": ["stretch"]}}
    return json.dumps(_REQUEST | {"tensors": chosen | pictures | fit}).encode()


def _mutated(random: Random, content: bytes) -> bytes:
    """A description with one tensor, or several, of another type, shape or content."""
    described = json.loads(content)
    tensors = described["tensors"]
    for _ in range(random.choice((1, 1, 2, 3))):
        name = random.choice(list(tensors))
        what = random.randrange(8)
        if what == 0:
            tensors[name]["dtype"] = random.choice(_TYPES)
        elif what == 1:
            tensors[name]["shape"] = random.choice(_SHAPES)
        elif what == 2:
            tensors[random.choice(("", "Prompt", "bundle", "prompt2"))] = tensors[name]
        elif what == 3:
            del tensors[name]
            if not tensors:
                break
        elif what == 4:
            key = random.choice(("png", "png", "priority", texts.odd(random)))
            described["parameters"] = json.dumps({key: random.choice((True, 0, 1 << 62, 0.5, texts.odd(random)))})
        elif what == 5:
            described["timeout"] = random.choice((0, 1, -1, 1 << 63))
        else:
            tensors[name]["data"] = _data(random, name, tensors[name])
    return json.dumps(described).encode()


def _data(random: Random, name: str, tensor: dict[str, Any]) -> list[Any]:
    if name in ("image", "mask"):
        data = str(tensor["data"][0]).encode("latin-1", "replace")
        mutate = random.choice((pictures.mutated, pictures.mutated, byte_strings.mutated))
        return [mutate(random, random.choice((data, random.choice(picture_examples())))).decode("latin-1")]
    if tensor["dtype"] == "object":
        return [texts.mutated(random, str(tensor["data"][0])).encode("utf-8", "surrogatepass").decode("latin-1")]
    return random.choices(_NUMBERS, k=random.choice((1, 2, 3)))


def _stand_in() -> ModuleType:
    """What `serving.wire` uses of Triton's module."""
    module = ModuleType(_TRITON)
    codes = {"UNAVAILABLE": 1, "CANCELLED": 2, "INVALID_ARG": 3, "INTERNAL": 4}

    class TritonError:
        def __init__(self, message: str, code: int) -> None:
            if len(message) > _LONGEST:
                raise AssertionError(f"an error of {len(message)} characters")
            message.encode("utf-8")  # as the server's binding does, which does not take halves of characters

    for name, code in codes.items():
        setattr(TritonError, name, code)
    module.TritonError = TritonError  # type: ignore[attr-defined]  # a module that is made here
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1  # type: ignore[attr-defined]
    module.InferenceResponse = lambda outputs=(), error=None: (outputs, error)  # type: ignore[attr-defined]
    module.Tensor = lambda name, array: (name, array)  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = _tensor  # type: ignore[attr-defined]
    return module


def _tensor(request: _Request, name: str) -> Any:
    array = request.tensors.get(name)
    return None if array is None else SimpleNamespace(as_numpy=lambda: array)

"""Lists of kernels, as TensorRT's builder prints them and its engine inspector returns them, to `Kernel`.

With ``ProfilingVerbosity.DETAILED`` and a logger of VERBOSE severity the builder prints one line for each kernel at the
end of a build, under ``Layers:``, in the order of their launches; no GPU is needed. TensorRT-RTX 1.7.1 and TensorRT 11:

    Name: node_linear_5_myl0_8, LayerType: gemm, Inputs: [ { Name: …, Dimensions: [1,-1,4608], …, Datatype: FP8, … }],
    Constants: [ … ], Outputs: [ … ], TacticName: …, StreamId: 0, Metadata: [ONNX Layer: node_linear_5]…

TensorRT 10 has constants among the inputs, names types as ``Format/Datatype``, and puts a layer's parameters in
between. The inspector's JSON has the same words as keys. Of several profiles each has its entries, all but the first's
with ``[profile 1]`` in names; entries without such a name belong to the same part (``_myl1_``) as one with it.

A listing informs; it is no contract, and an entry of another form is an opaque kernel here, never an error.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from export.engine.kernels import BYTES, UNKNOWN, Kernel, Tensor

LONGEST_NAME = 200
"""Characters that are kept of an entry that is not understood."""
_PREFIX = re.compile(r"(?:\[[^\]]*\] )*")
"""What a logger may put in front of a line: time, severity, and who says it."""
_HEADING = re.compile(r"[^:,{}]+:")
_TYPE = re.compile(r"(?:Format/Datatype|Data[Tt]ype): ([^,}\]]*)")
_WORDS = {word.lower(): word for word in BYTES} | {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16"}
_TYPE_WORD = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_STREAM = re.compile(r"StreamId: (\d{1,9})")
_WEIGHTS = re.compile(r'Weights: \{"Type": "(\w+)", "Count": (\d{1,18})\}')
_PROFILE = re.compile(r"\[profile (\d{1,9})\]")
_PART = re.compile(r"_myl(\d+)_\d+$")
_CONSTANT = "_dconst"
"""In the names of the constants that TensorRT 10 lists among a kernel's inputs."""


def parse_kernels(messages: Iterable[str]) -> tuple[Kernel, ...]:
    """The last listing of a build's log; empty if there is none, most likely because the verbosity was lower.

    Args:
        messages: of the builder, oldest first, each with one or more lines.
    """
    entries: list[tuple[str, Kernel]] = []
    for message in messages:
        found = _from_json(message)
        if found is not None:
            entries = found
            continue
        heading = False
        # Not splitlines: it also splits at control characters, which metadata may hold.
        for line in message.split("\n"):
            content = _PREFIX.sub("", line).strip()
            if content == "Layers:":
                entries, heading = [], True
            elif ", LayerType: " in line or (heading and line.strip() and not _HEADING.fullmatch(content)):
                entries.append((line, _kernel(line)))
            else:  # the list ends with an empty line, or where something else is listed
                heading = False
    return _with_profiles(entries)


def _kernel(line: str) -> Kernel:
    start = line.find("Name: ")
    head, inputs, rest = line[max(start, 0) :].partition(", Inputs: [")
    name, _, kind = head.removeprefix("Name: ").partition(", LayerType: ")
    operands, outputs, rest = rest.partition("], Outputs: [")
    results, end, rest = rest.partition("]" if rest.startswith("]") else "}]")
    taken, separate, constants = operands.partition("], Constants: [")
    settings, _, metadata = rest.partition(", Metadata: ")
    known, kept, given = _tensors(taken), _tensors(constants), _tensors(results)
    if start < 0 or not (kind and inputs and outputs and end) or known is None or kept is None or given is None:
        return _opaque(name, kind)
    if not separate:
        kept = tuple(tensor for tensor in known if _CONSTANT in tensor.name)
        known = tuple(tensor for tensor in known if _CONSTANT not in tensor.name)
    if weights := _WEIGHTS.search(settings):
        kept += (Tensor("weights", _type_name(weights[1]), (int(weights[2]),)),)
    stream = _STREAM.search(settings)
    return Kernel(name, kind.strip(), int(stream[1]) if stream else 0, known, kept, given, _layers(metadata))


def _opaque(name: str, kind: str = "") -> Kernel:
    shown = " ".join(name.split())[:LONGEST_NAME]
    return Kernel(shown, kind.partition(",")[0].strip()[:LONGEST_NAME] or UNKNOWN, 0, (), (), (), (), opaque=True)


def _tensors(text: str) -> tuple[Tensor, ...] | None:
    """The tensors of `` { Name: a, Dimensions: [1,-1], …, Datatype: FP8, Format: … }, { … }``; None of another form."""
    tensors = []
    for part in text.split("{ Name: ")[1:]:
        name, dimensions, rest = part.partition(", Dimensions: [")
        dims, bracket, rest = rest.partition("]")
        try:
            sizes = tuple(int(size) for size in dims.split(",") if size.strip())
        except ValueError:
            return None
        if not (dimensions and bracket):
            return None
        found = _TYPE.search(rest)
        tensors.append(Tensor(name.partition(", Location: ")[0], _type_name(found[1]) if found else UNKNOWN, sizes))
    return tuple(tensors)


def _type_name(text: str) -> str:
    """``Int8`` for ``Thirty-two wide channel vectorized row major Int8 format``."""
    found = _TYPE_WORD.search(text)
    return _WORDS[found[1].lower()] if found else UNKNOWN


def _layers(metadata: str) -> tuple[str, ...]:
    """The names of ``[ONNX Layer: a]\\x1f[ONNX Layer: b]``; strip takes the separator, which Python calls a space."""
    return tuple(part.strip().removesuffix("]") for part in metadata.split("[ONNX Layer: ")[1:])


def _from_json(message: str) -> list[tuple[str, Kernel]] | None:
    """The entries of the engine inspector's JSON, each with its text; None if the message is something else."""
    if '"Layers"' not in message:
        return None
    try:
        layers = json.loads(message[message.index("{") :])["Layers"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return [(str(layer), _from_object(layer)) for layer in layers] if isinstance(layers, list) else None


def _from_object(layer: Any) -> Kernel:
    """One layer: an object, or with less verbosity its name alone."""
    if not isinstance(layer, dict):
        return _opaque(str(layer))
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    lists = [_objects(layer.get(key, [])) for key in ("Inputs", "Constants", "Outputs")]
    taken, kept, given = lists
    if not (name and kind) or taken is None or kept is None or given is None:
        return _opaque(name, kind)
    if "Constants" not in layer:
        kept = tuple(tensor for tensor in taken if _CONSTANT in tensor.name)
        taken = tuple(tensor for tensor in taken if _CONSTANT not in tensor.name)
    weights, stream = layer.get("Weights"), layer.get("StreamId")
    if isinstance(weights, dict) and type(weights.get("Count")) is int:
        kept += (Tensor("weights", _type_name(str(weights.get("Type"))), (weights["Count"],)),)
    layers = _layers(str(layer.get("Metadata", "")))
    return Kernel(name, kind, stream if type(stream) is int else 0, taken, kept, given, layers)


def _objects(tensors: Any) -> tuple[Tensor, ...] | None:
    if not isinstance(tensors, list):
        return None
    made = []
    for tensor in tensors:
        dims = tensor.get("Dimensions") if isinstance(tensor, dict) else None
        if not isinstance(dims, list) or not all(type(size) is int for size in dims):
            return None
        kinds = [str(tensor[key]) for key in ("Format/Datatype", "Datatype", "DataType") if key in tensor]
        made.append(Tensor(str(tensor.get("Name", "")), _type_name(" ".join(kinds)), tuple(dims)))
    return tuple(made)


def _with_profiles(entries: Sequence[tuple[str, Kernel]]) -> tuple[Kernel, ...]:
    parts: dict[str, int] = {}
    for text, kernel in entries:
        named, part = _PROFILE.search(text), _PART.search(kernel.name)
        if named and part:
            parts[part[1]] = int(named[1])
    return tuple(replace(kernel, profile=_profile(text, kernel, parts)) for text, kernel in entries)


def _profile(text: str, kernel: Kernel, parts: Mapping[str, int]) -> int:
    if named := _PROFILE.search(text):
        return int(named[1])
    part = _PART.search(kernel.name)
    return parts.get(part[1], 0) if part else 0

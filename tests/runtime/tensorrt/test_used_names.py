"""Every name of TensorRT-RTX and of cuda-bindings that the runtime uses is in the installed packages.

The fakes that stand for them have their parameters, results and values.

The names are collected from the runtime's source, so a new one cannot escape; variables that hold an object of
TensorRT are called the same everywhere, and the table says which class each of them is.
"""

import ast
import re
from enum import IntEnum

import pytest
import tensorrt_rtx as trt
from cuda.bindings import runtime as cudart
from support.engines import fake_context, fake_cuda, fake_enums, fake_tensorrt
from support.engines.fake_cuda import FakeCudart
from support.processes import ROOT

MEANING = {
    "trt": trt,
    "runtime": trt.Runtime,
    "engine": trt.ICudaEngine,
    "context": trt.IExecutionContext,
    "config": trt.IRuntimeConfig,
    "cache": trt.IRuntimeCache,
    "cudart": cudart,
}
OWNERS = ("self", "package")
"""What may stand before such a variable: ``self.package.runtime``."""
FILES = ("package.py", "engine.py", "context.py", "kernel_cache.py", "cuda.py", "validity.py")
CLASSES = {
    fake_tensorrt.Runtime: trt.Runtime,
    fake_tensorrt.ICudaEngine: trt.ICudaEngine,
    fake_context.IExecutionContext: trt.IExecutionContext,
    fake_context.IRuntimeConfig: trt.IRuntimeConfig,
    fake_context.IRuntimeCache: trt.IRuntimeCache,
}
"""The fakes that the runtime is tested with, and what they stand for."""
ENUMERATIONS = [
    one for one in vars(fake_enums).values() if isinstance(one, type) and one.__module__ == fake_enums.__name__
]
CUDA_ENUMERATIONS = (fake_cuda.cudaError_t, fake_cuda.cudaMemcpyKind, fake_cuda.cudaStreamCaptureMode)


def methods(fake):
    """Names of a fake's methods that the real class has too, and those methods."""
    return [
        (name, method)
        for name, method in vars(fake).items()
        if not name.startswith("_") and name not in ("take", "refuse") and hasattr(method, "__code__")
    ]


def chain(node):
    """``a.b.c`` as ["a", "b", "c"]; what is not a plain name is dropped from the left."""
    if isinstance(node, ast.Attribute):
        return [*chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def used_names(file):
    """(variable, names after it) for every access to an object of TensorRT or cuda-bindings."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / "runtime" / "tensorrt" / file).read_text())):
        if isinstance(node, ast.Attribute):
            names = chain(node)
            for index in range(len(names) - 1, 0, -1):
                if names[index - 1] in MEANING and names[: index - 1] in (
                    [],
                    ["self"],
                    ["self", "package"],
                    ["package"],
                ):
                    found.add((names[index - 1], tuple(names[index:])))
    return found


USED = set().union(*map(used_names, FILES))


def test_the_collection_works():
    """It finds what is surely used, of every kind; an empty one would pass the tests below."""
    assert {variable for variable, _ in USED} == set(MEANING)
    assert ("runtime", ("deserialize_cuda_engine",)) in USED
    assert ("engine", ("weight_streaming_budget_v2",)) in USED, "an assignment"
    assert ("context", ("execute_async_v3",)) in USED, "behind self"
    assert ("trt", ("ILogger", "Severity", "ERROR")) in USED, "in three parts"
    assert ("cudart", ("cudaError_t", "cudaErrorMemoryAllocation")) in USED
    assert len(USED) > 60


@pytest.mark.parametrize(("variable", "names"), sorted(USED), ids=lambda value: str(value))
def test_name_exists(variable, names):
    holder = MEANING[variable]
    for name in names:
        assert hasattr(holder, name), f"{holder} has no {name}"
        holder = getattr(holder, name)


@pytest.mark.parametrize("fake", CLASSES, ids=lambda fake: fake.__name__)
def test_the_fakes_have_the_real_signatures(fake):
    """As many parameters as one of the overloads in the real method's docstring, and the same names.

    pybind11 writes ``name(self: X, stream: typing.SupportsInt) -> bool`` there; properties have no such line.
    """
    found = methods(fake)
    assert found
    for name, method in found:
        real = re.sub(r" = <[^>]*>", "", getattr(CLASSES[fake], name).__doc__)  # default values
        signatures = [
            re.findall(r"(\w+): ", arguments) for arguments in re.findall(rf"\b{name}\((self: .*)\) ->", real)
        ]
        ours = list(method.__code__.co_varnames[: method.__code__.co_argcount])
        assert ours in signatures, f"{name}{ours}, TensorRT has {signatures}"


@pytest.mark.parametrize("fake", CLASSES, ids=lambda fake: fake.__name__)
def test_the_fakes_have_the_real_results(fake):
    """What a call answers is how the runtime learns that it failed: False, None where an object was wanted, or nothing.

    ``-> nvinfer1::IRuntimeCache`` and ``-> tensorrt_rtx.IRuntimeConfig`` count as the class's own name.
    """
    for name, method in methods(fake):
        results = {
            re.split(r"\.|::", result)[-1] if "[" not in result else result
            for result in re.findall(rf"\b{name}\(.*\) -> (.+)", getattr(CLASSES[fake], name).__doc__)
        }
        ours = method.__annotations__.get("return", "missing")
        ours = ours.__name__ if isinstance(ours, type) and not hasattr(ours, "__args__") else str(ours)
        if ours != "missing" or results & {"bool", "None"}:
            assert ours in results, f"{name} gives {ours}, TensorRT {results}"


@pytest.mark.parametrize("fake", ENUMERATIONS, ids=lambda fake: fake.__name__)
def test_the_enumerations_are_the_real_ones(fake):
    """All members, with their values: TensorRT gives some as plain integers."""
    real = getattr(trt.ILogger if fake is fake_enums.Severity else trt, fake.__name__)
    assert {name: int(member) for name, member in fake.__members__.items()} == {
        name: int(member) for name, member in real.__members__.items()
    }


def test_no_enumeration_is_left_out():
    assert len(ENUMERATIONS) == 8 and all(issubclass(fake, IntEnum) for fake in ENUMERATIONS)


@pytest.mark.parametrize("fake", CUDA_ENUMERATIONS, ids=lambda fake: fake.__name__)
def test_cuda_values_are_the_real_ones(fake):
    real = getattr(cudart, fake.__name__)
    assert {name: int(getattr(real, name)) for name in fake.__members__} == {
        name: int(member) for name, member in fake.__members__.items()
    }
    assert cudart.cudaStreamNonBlocking == FakeCudart.cudaStreamNonBlocking
    assert cudart.cudaHostAllocDefault == FakeCudart.cudaHostAllocDefault


def test_the_fake_cuda_has_the_real_parameters():
    """cuda-bindings are compiled; the first line of a docstring is the signature."""
    for name, method in vars(FakeCudart).items():
        if not name.startswith("cuda") or not hasattr(method, "__code__"):
            continue
        first = getattr(cudart, name).__doc__.strip().split("\n")[0]
        wanted = [part.split(":")[0].split()[-1] for part in first[first.index("(") + 1 : -1].split(",") if part]
        ours = list(method.__code__.co_varnames[1 : method.__code__.co_argcount])
        # Some parameters' types stand before their names, some have no name of their own to compare.
        assert len(ours) == len(wanted), f"{name}{ours}, cuda-bindings have {first}"

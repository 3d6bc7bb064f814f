"""The runtime and the server's part must not load what the box does not have."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.source_tree import imported_names, read_modules

import runtime

# Not the folder above this file: where the wheel is tested, its own files are read and imported, not the checkout's.
ROOT = Path(runtime.__file__).parents[1]
FORBIDDEN = {
    "torch",
    "transformers",
    "diffusers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "ml_dtypes",
    "model",
    "calibration",
    "export",
    "training",
    "scripts",
    "tests",
    "support",
}
BACKENDS = {
    ("onnxruntime", "runtime/backend/ort.py"),
    ("tensorrt", "runtime/tensorrt/package.py"),
    ("tensorrt_rtx", "runtime/tensorrt/package.py"),
    ("cuda", "runtime/tensorrt/cuda.py"),
}


def importers(root: Path, packages: tuple[str, ...], wanted: set[str]) -> set[tuple[str, str]]:
    """(top-level module, file) for every file below the packages, however deep, that imports one of `wanted`."""
    found = set()
    for module in read_modules(root, packages).values():
        names = {name.partition(".")[0] for name in imported_names(module)}
        found |= {(name, module.file) for name in names & wanted}
    return found


def test_no_file_imports_a_forbidden_module():
    assert importers(ROOT, ("runtime", "serving"), FORBIDDEN) == set()
    assert importers(ROOT, ("runtime",), {"serving"}) == set()


def test_a_backends_package_is_imported_in_one_file():
    assert importers(ROOT, ("runtime", "serving"), {name for name, _ in BACKENDS}) == BACKENDS


@pytest.mark.parametrize(
    "line",
    [
        "import torch",
        "import numpy, torch.nn as nn",
        "from torch.nn import functional",
        "def f():\n    from torch import nn",
        "if TYPE_CHECKING:\n    import torch",
        "torch = import_module('torch')",
        "torch = __import__('torch')",
    ],
)
@pytest.mark.parametrize("file", ["runtime/a.py", "runtime/room/a.py", "runtime/a/room/in/a/room/__init__.py"])
def test_an_import_is_found_in_any_room(tmp_path, file, line):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line)
    (tmp_path / "runtime" / "innocent.py").write_text("import torchless\nfrom runtime import torch\ntorch = 'torch'\n")
    assert importers(tmp_path, ("runtime",), FORBIDDEN) == {("torch", file)}


def test_a_picture_in_a_fresh_process_loads_none(demo_bundle):
    """Not only the imports: loading a bundle and making a picture."""
    code = (
        "import json, sys; from runtime import Pipeline; "
        f"Pipeline.load({str(demo_bundle)!r}).generate('x', steps=1, seed=0); "
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"runtime", "numpy", "onnxruntime", "tokenizers"} <= loaded
    assert not loaded & (FORBIDDEN | {"serving"})
    assert not loaded & {"cuda", "tensorrt", "tensorrt_rtx"}, "a bundle without engines needs none of them"


def test_importing_constants_loads_nothing():
    code = "import sys; before = set(sys.modules); import runtime.constants; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert {"runtime", "runtime.constants"} <= loaded
    assert not loaded & {"numpy", "tokenizers", "PIL", "runtime.pipeline"}

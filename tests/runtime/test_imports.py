"""The runtime must not load what the box does not have."""

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "torch",
    "transformers",
    "diffusers",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "safetensors",
    "model",
    "export",
    "calibration",
}


def test_no_file_of_the_runtime_names_a_forbidden_module():
    for file in sorted((ROOT / "runtime").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & FORBIDDEN, file.name


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
    assert not loaded & FORBIDDEN
    assert not loaded & {"cuda", "tensorrt", "tensorrt_rtx"}, "a bundle without engines needs none of them"


BACKENDS = {"onnxruntime": "ort.py", "tensorrt": "package.py", "tensorrt_rtx": "package.py", "cuda": "cuda.py"}


def test_a_backends_package_is_named_in_one_file():
    found = {}
    for file in sorted((ROOT / "runtime").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found |= {(name.split(".")[0], file.name): None for name in names if name.split(".")[0] in BACKENDS}
    assert sorted(found) == sorted(BACKENDS.items())


def test_importing_constants_loads_nothing():
    code = "import sys; before = set(sys.modules); import runtime.constants; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert {"runtime", "runtime.constants"} <= loaded and not loaded & {
        "numpy",
        "tokenizers",
        "PIL",
        "runtime.pipeline",
    }

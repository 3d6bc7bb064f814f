"""The shape of the project: which way imports point, and how large folders, files and functions may grow.

The checks are in tests/support/shape.py, and are shown to fail in tests/test_shape_checks.py. Nothing is imported.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import slow
from support.shape import (
    bare_ignores,
    crowded_folders,
    inside,
    long_files,
    long_functions,
    unknown_rooms,
    unwanted_packages,
    upward_arrows,
)
from support.source_tree import Module, circle, folder_graph, imports, plant, read_modules

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "runtime": (),
    "serving": ("runtime",),
    "model": ("runtime.bundle", "runtime.constants", "runtime.errors", "runtime.progress"),
    "calibration": ("model", "runtime"),
    "export": ("calibration", "model", "runtime", "serving"),
    "training": ("calibration", "export", "model", "runtime", "serving"),
    "scripts": ("calibration", "export", "model", "runtime", "serving", "training", "tests.support"),
}
"""What of the others each package may import."""

TESTS = ("tests", "support")
"""Names of the tests' folders; scripts.bench alone makes its wide checkpoint with the peers that the tests have."""

LAYERS = {
    "runtime": (
        "constants errors file_locks generated host_memory progress user_cache",
        "atomic_files",
        "console",
        "bundle",
        "graph",
        "prompt sampling tensorrt",
        "image",
        "request",
        "plan",
        "backend layout",
        "loading",
        "pipeline",
        "selftest",
        "__init__",
        "cli",
        "__main__",
    ),
    "model": (
        "__init__ config layers",
        "autoencoder transformer",
        "text_encoder tiled_autoencoder",
        "checkpoint",
    ),
    "calibration": (
        "__init__ checkpoint_options lora_options origin points prompts",
        "streaming fake_quant",
        "reference",
        "plans",
        "channels static",
        "command",
        "__main__",
    ),
    "export": (
        "__init__ memory atomic_directory reporting demo_model",
        "activation_ranges velocity graph.passes",
        "graph",
        "engine measurements preview_fit rounding",
        "selftest",
        "build debug inspect sensitivity triton verify",
    ),
    "scripts": (
        "__init__ root",
        "make_checkpoint demo golden triton",
        "bench fuzz",
        "interrupted",
    ),
}
"""Rooms (folders and single files) of a package from the ground up: each imports only from lines above its own.

A package without subfolders is one room and not listed.
"""

TYPED = ("runtime", "serving", "model")
"""Packages that mypy checks, strictly."""

FILES_IN_A_FOLDER = 16
LINES_OF_A_FILE = 300
LINES_OF_A_FUNCTION = 50
"""Without its docstring."""

LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer, as ``file:name``, with the reason."""


@pytest.fixture(scope="module")
def project() -> dict[str, Module]:
    """All modules of the seven packages."""
    return read_modules(ROOT, tuple(MAY_IMPORT))


def test_every_folder_with_code_is_a_package_with_rules(project):
    """A package that `MAY_IMPORT` forgets would be checked by nothing here."""
    assert {file.parent.name for file in ROOT.glob("*/__init__.py")} == {*MAY_IMPORT}


def test_modules_import_in_no_circle(project):
    assert " -> ".join(circle(imports(project))) == ""


def test_folders_import_in_no_circle(project):
    assert " -> ".join(circle(folder_graph(project))) == ""


def test_packages_import_only_what_they_may_know(project):
    assert "\n".join(unwanted_packages(project, MAY_IMPORT, TESTS)) == ""


def test_rooms_import_only_from_below(project):
    assert "\n".join(unknown_rooms(project, LAYERS)) == ""
    assert "\n".join(upward_arrows(project, LAYERS)) == ""


def test_no_folder_is_crowded(project):
    assert "\n".join(crowded_folders(project, FILES_IN_A_FOLDER)) == ""


def test_no_file_is_long(project):
    assert "\n".join(long_files(project, LINES_OF_A_FILE)) == ""


def test_functions_are_short_or_have_a_reason(project):
    assert "\n".join(long_functions(project, LINES_OF_A_FUNCTION, LONG_FUNCTIONS)) == ""


def test_types_are_ignored_for_a_reason():
    assert "\n".join(bare_ignores(ROOT, TYPED)) == ""


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_linter_refuses_such_imports_in_every_folder(project, package):
    """Each package has a table of its own, which must hold in its subfolders too, and in a function."""
    unwanted = [name for name in (*MAY_IMPORT, *TESTS) if name != package and not _may_import(package, name)]
    wanted = [package, *MAY_IMPORT[package]]
    for folder in sorted({one.folder for one in project.values() if inside(one.package, package)}):
        code = "def f():\n" + "".join(f"    import {name}.planted\n" for name in (*wanted, *unwanted))
        told = _lint(f"{folder}/planted.py", code)
        assert {line.split("`")[1] for line in told} == set(unwanted), folder


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("runtime", "torch transformers diffusers onnx onnx_ir onnxscript safetensors ml_dtypes"),
        ("serving", "torch transformers diffusers onnx onnx_ir onnxscript safetensors tritonclient"),
        ("model", "numpy onnx onnx_ir transformers diffusers"),
        ("calibration", "onnx onnx_ir onnxruntime transformers diffusers"),
        ("export", "transformers diffusers"),
    ],
)
def test_the_linter_refuses_packages_that_are_not_there(package, names):
    """Third parties that a package must do without, planted where the table lies highest: in a new, deep folder."""
    told = _lint(f"{package}/new/room/planted.py", "".join(f"from {name} import x\n" for name in names.split()))
    assert {line.split("`")[1] for line in told} == set(names.split())


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("runtime/deep/in/a/room.py", "def f():\n    import serving.wire", "serving.wire"),
        ("serving/a.py", "from export.triton import config", "export.triton"),
        ("model/a.py", "from runtime.pipeline import Pipeline", "runtime.pipeline"),
        ("model/a.py", "from runtime import bundle, Pipeline", "runtime"),
        ("calibration/a.py", "from export.velocity import x", "export.velocity"),
        ("export/a.py", "import training", "training"),
        ("training/a.py", "from scripts.bench import gpu", "scripts.bench"),
        ("scripts/a.py", "from support import peers", "support"),
    ],
)
def test_an_import_of_an_unwanted_package_is_seen(tmp_path, file, line, told):
    assert unwanted_packages(plant(tmp_path, {file: line}), MAY_IMPORT, TESTS) == [f"{file} imports {told}"]


def test_imports_that_packages_may_have_are_left_alone(tmp_path):
    modules = plant(
        tmp_path,
        {
            "model/a.py": "from runtime.bundle.manifest import Manifest\nimport runtime.constants, torch, model.b",
            "serving/a.py": "import runtime, serving.b, exporter",
        },
    )
    assert unwanted_packages(modules, MAY_IMPORT, TESTS) == []


def test_slow_tests_are_where_they_are_said_to_be():
    """Tests that move would be run by ``make check`` again."""
    assert [place for place in slow.PLACES if not (slow.TESTS / place).exists()] == []


def test_the_type_checker_is_strict_for_what_it_must_check():
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["tool"]["mypy"]
    assert settings["strict"] is True and sorted(settings["packages"]) == sorted(TYPED)


def _may_import(package: str, name: str) -> bool:
    """May `package` import `name` or something inside it?"""
    return any(inside(one, name) for one in MAY_IMPORT[package])


def _lint(file: str, code: str) -> list[str]:
    """What ruff says of forbidden imports in a file that is not there, with the settings of its folder."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise"]
    command += ["--no-cache", "--quiet", "--stdin-filename", file, "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if "TID251" in line]

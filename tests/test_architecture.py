"""The shape of the project: which way imports point, and how large folders, files and functions may grow.

Every check is shown to fail on a small tree that breaks the rule, then run on the project. Nothing is imported.
"""

import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from support.source_tree import Module, circle, folder_graph, functions, imported_names, imports, read_modules

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "runtime": (),
    "serving": ("runtime",),
    "model": ("runtime.bundle", "runtime.constants"),
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
        "constants console atomic_files",
        "bundle",
        "graph",
        "prompt sampling tensorrt",
        "image",
        "plan",
        "backend layout",
        "pipeline",
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
    "export": (
        "__init__ memory atomic_directory reporting demo_model",
        "activation_ranges velocity graph.passes",
        "graph",
        "engine",
        "build inspect sensitivity triton verify",
    ),
    "scripts": (
        "__init__ make_checkpoint demo golden triton",
        "bench",
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


def unwanted_packages(modules: Mapping[str, Module], may_import: Mapping[str, Sequence[str]]) -> list[str]:
    """Imports of a package of the project that the importing package may not know."""
    found = []
    for module in modules.values():
        package = module.name.partition(".")[0]
        own = (package, *may_import[package])
        for name in sorted(imported_names(module, modules)):
            if name.partition(".")[0] in (*may_import, *TESTS) and not any(_inside(name, one) for one in own):
                found.append(f"{module.file} imports {name}")
    return found


def upward_arrows(modules: Mapping[str, Module], layers: Mapping[str, Sequence[str]]) -> list[str]:
    """Imports, inside a package, of another room that does not lie below."""
    found = []
    graph = imports(modules)
    for package, rows in layers.items():
        height = {room: row for row, rooms in enumerate(rows) for room in rooms.split()}
        rooms = {name: _room(name, package, height) for name in modules if _inside(name, package)}
        for name, room in rooms.items():
            others = [target for target in sorted(graph[name]) if target in rooms and rooms[target] != room]
            above = [target for target in others if height[rooms[target]] >= height[room]]
            found += [f"{modules[name].file} imports {target}, which is not below it" for target in above]
    return found


def unknown_rooms(modules: Mapping[str, Module], layers: Mapping[str, Sequence[str]]) -> list[str]:
    """Rooms in `layers` that are not in the tree, and packages with subfolders that `layers` leaves out."""
    listed = {package: [room for row in rows for room in row.split()] for package, rows in layers.items()}
    wanted = {
        f"{package}.{room}".removesuffix(".__init__"): room for package, rooms in listed.items() for room in rooms
    }
    folders = {module.folder for module in modules.values()}
    unlisted = sorted({folder.partition("/")[0] for folder in folders if "/" in folder} - layers.keys())
    return sorted(f"there is no {name}" for name in wanted if name not in modules) + [
        f"{package} has no layers" for package in unlisted
    ]


def crowded_folders(modules: Mapping[str, Module]) -> list[str]:
    """Folders with too many Python files."""
    counts = Counter(module.folder for module in modules.values())
    return [f"{folder} has {count} files" for folder, count in sorted(counts.items()) if count > FILES_IN_A_FOLDER]


def long_files(modules: Mapping[str, Module]) -> list[str]:
    """Files with too many lines."""
    return [f"{one.file} has {one.lines} lines" for one in modules.values() if one.lines > LINES_OF_A_FILE]


def long_functions(modules: Mapping[str, Module], allowed: Mapping[str, str]) -> list[str]:
    """Functions with too many lines that are not `allowed`, and those allowed that need it no more."""
    lengths = {f"{one.file}:{name}": length for one in modules.values() for name, length in functions(one)}
    long = {name for name, length in lengths.items() if length > LINES_OF_A_FUNCTION}
    return [f"{name} has {lengths[name]} lines" for name in sorted(long - allowed.keys())] + [
        f"{name} is not long" for name in sorted(allowed.keys() - long)
    ]


def bare_ignores(root: Path, packages: Sequence[str]) -> list[str]:
    """Lines that the type checker is told to ignore without a reason behind it in the same line."""
    found = []
    for file in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            ignored = re.search(r"#\s*type:\s*ignore(\[[\w, -]+\])?(.*)", line)
            if ignored and not re.match(r"\s*#\s*\w", ignored[2]):
                found.append(f"{file.relative_to(root).as_posix()}:{number}: {line.strip()}")
    return found


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
    assert "\n".join(unwanted_packages(project, MAY_IMPORT)) == ""


def test_rooms_import_only_from_below(project):
    assert "\n".join(unknown_rooms(project, LAYERS)) == ""
    assert "\n".join(upward_arrows(project, LAYERS)) == ""


def test_no_folder_is_crowded(project):
    assert "\n".join(crowded_folders(project)) == ""


def test_no_file_is_long(project):
    assert "\n".join(long_files(project)) == ""


def test_functions_are_short_or_have_a_reason(project):
    assert "\n".join(long_functions(project, LONG_FUNCTIONS)) == ""


def test_types_are_ignored_for_a_reason():
    assert "\n".join(bare_ignores(ROOT, TYPED)) == ""


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_the_linter_refuses_such_imports_in_every_folder(project, package):
    """Each package has a table of its own, which must hold in its subfolders too, and in a function."""
    unwanted = [name for name in (*MAY_IMPORT, *TESTS) if name != package and not _may_import(package, name)]
    wanted = [package, *MAY_IMPORT[package]]
    for folder in sorted({one.folder for one in project.values() if _inside(one.package, package)}):
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
    "line",
    [
        "import runtime.b.d",
        "from runtime.b import d",
        "from .b import d",
        "def f():\n    from runtime.b.d import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from runtime.b.d import X",
        "from importlib import import_module\nimport_module('runtime.b.d')",
    ],
)
def test_a_circle_is_seen_however_it_is_closed(plant, line):
    modules = plant(
        {"runtime/a.py": line, "runtime/b/c.py": "from runtime.a import x", "runtime/b/d.py": "from . import c"}
    )
    assert sorted(circle(imports(modules))[:-1]) == ["runtime.a", "runtime.b.c", "runtime.b.d"]
    del modules["runtime.b.c"]
    assert circle(imports(modules)) == []


def test_a_circle_of_folders_is_seen_where_modules_have_none(plant):
    files = {
        "runtime/a/one.py": "import runtime.b.one",
        "runtime/b/one.py": "",
        "runtime/b/two.py": "import runtime.a.two",
    }
    modules = plant({**files, "runtime/a/two.py": "", "runtime/top.py": "import runtime.a.one"})
    assert circle(imports(modules)) == []
    assert sorted(circle(folder_graph(modules))[:-1]) == ["runtime/a", "runtime/b"]
    del modules["runtime.b.two"]
    assert circle(folder_graph(modules)) == []


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
def test_an_import_of_an_unwanted_package_is_seen(plant, file, line, told):
    assert unwanted_packages(plant({file: line}), MAY_IMPORT) == [f"{file} imports {told}"]


def test_imports_that_packages_may_have_are_left_alone(plant):
    modules = plant(
        {
            "model/a.py": "from runtime.bundle.manifest import Manifest\nimport runtime.constants, torch, model.b",
            "serving/a.py": "import runtime, serving.b, exporter",
        }
    )
    assert unwanted_packages(modules, MAY_IMPORT) == []


def test_an_upward_arrow_is_seen(plant):
    layers = {"runtime": ("ground", "low other", "__init__", "cli", "low.top")}
    modules = plant(
        {
            "runtime/__init__.py": "from runtime.low import a",
            "runtime/ground.py": "from runtime import low",
            "runtime/low/__init__.py": "",
            "runtime/low/a.py": "from runtime.low import b\nimport runtime.ground, runtime.other",
            "runtime/low/b.py": "",
            "runtime/low/top.py": "from runtime.cli import x\nfrom runtime.low import b",
            "runtime/other.py": "from runtime.ground import x",
            "runtime/cli.py": "from runtime import Pipeline\nfrom runtime.low import top",
        }
    )
    assert unknown_rooms(modules, layers) == []
    assert upward_arrows(modules, layers) == [
        "runtime/cli.py imports runtime.low.top, which is not below it",
        "runtime/ground.py imports runtime.low, which is not below it",
        "runtime/low/a.py imports runtime.other, which is not below it",
    ]


def test_layers_that_do_not_fit_the_tree_are_seen(plant):
    modules = plant({"runtime/a.py": "", "export/a.py": "", "export/room/b.py": ""})
    assert unknown_rooms(modules, {"runtime": ("a", "gone")}) == ["there is no runtime.gone", "export has no layers"]
    with pytest.raises(ValueError, match=r"export\.room\.b is in no layer of export"):
        upward_arrows(modules, {"export": ("a",)})


def test_a_crowded_folder_is_seen(plant):
    files = {f"runtime/room/f{index}.py": "" for index in range(FILES_IN_A_FOLDER)}
    assert crowded_folders(plant(files)) == []
    assert crowded_folders(plant({**files, "runtime/room/__init__.py": ""})) == ["runtime/room has 17 files"]


def test_a_long_file_is_seen(plant):
    modules = plant(
        {"runtime/a.py": "x = 1\n" * LINES_OF_A_FILE, "runtime/room/b.py": "x = 1\n" * (LINES_OF_A_FILE + 1)}
    )
    assert long_files(modules) == ["runtime/room/b.py has 301 lines"]


def test_a_long_function_is_seen_and_a_reason_that_is_no_longer_needed(plant):
    def function(lines: int) -> str:
        return '    async def f(self):\n        """One.\n\n        Two.\n        """\n' + "        x = 1\n" * (
            lines - 1
        )

    code = "class C:\n" + function(LINES_OF_A_FUNCTION) + "class D:\n" + function(LINES_OF_A_FUNCTION + 1)
    modules = plant({"runtime/room/a.py": code})
    assert long_functions(modules, {}) == ["runtime/room/a.py:D.f has 51 lines"]
    allowed = {"runtime/room/a.py:D.f": "a reason", "runtime/room/a.py:C.f": "a reason"}
    assert long_functions(modules, allowed) == ["runtime/room/a.py:C.f is not long"]


def test_a_type_that_is_ignored_without_a_reason_is_seen(tmp_path):
    (tmp_path / "runtime" / "room").mkdir(parents=True)
    (tmp_path / "runtime" / "room" / "a.py").write_text(
        "a = b  # type: ignore[index]  # a reason\n"
        "a = b  # type: ignore[index]\n"
        "a = b  #type:ignore\n"
        "a = b  # type: ignore[index, misc]  #\n"
    )
    found = bare_ignores(tmp_path, ("runtime",))
    assert [line.split(":")[1] for line in found] == ["2", "3", "4"]


def test_the_type_checker_is_strict_for_what_it_must_check():
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)["tool"]["mypy"]
    assert settings["strict"] is True and sorted(settings["packages"]) == sorted(TYPED)


@pytest.fixture
def plant(tmp_path):
    """plant(files) -> the modules of a tree with these texts."""

    def make(files: Mapping[str, str]) -> dict[str, Module]:
        for file, text in files.items():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return read_modules(tmp_path, sorted({file.partition("/")[0] for file in files}))

    return make


def _inside(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def _room(name: str, package: str, rooms: Mapping[str, int]) -> str:
    """The longest of `rooms` that a module is in; ValueError if it is in none."""
    inner = name.removeprefix(package).removeprefix(".") or "__init__"
    fits = [room for room in rooms if _inside(inner, room)]
    if not fits:
        raise ValueError(f"{name} is in no layer of {package}")
    return max(fits, key=len)


def _may_import(package: str, name: str) -> bool:
    """May `package` import `name` or something inside it?"""
    return any(_inside(one, name) for one in MAY_IMPORT[package])


def _lint(file: str, code: str) -> list[str]:
    """What ruff says of forbidden imports in a file that is not there, with the settings of its folder."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise"]
    command += ["--no-cache", "--quiet", "--stdin-filename", file, "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if "TID251" in line]

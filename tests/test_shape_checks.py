"""The checks of the project's shape find what they look for: each on a small tree that breaks its rule."""

import pytest
from support.shape import (
    bare_ignores,
    crowded_folders,
    long_files,
    long_functions,
    unknown_rooms,
    upward_arrows,
)
from support.source_tree import circle, folder_graph, imports, plant


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
def test_a_circle_is_seen_however_it_is_closed(tmp_path, line):
    modules = plant(
        tmp_path,
        {"runtime/a.py": line, "runtime/b/c.py": "from runtime.a import x", "runtime/b/d.py": "from . import c"},
    )
    assert sorted(circle(imports(modules))[:-1]) == ["runtime.a", "runtime.b.c", "runtime.b.d"]
    del modules["runtime.b.c"]
    assert circle(imports(modules)) == []


def test_a_circle_of_folders_is_seen_where_modules_have_none(tmp_path):
    files = {
        "runtime/a/one.py": "import runtime.b.one",
        "runtime/b/one.py": "",
        "runtime/b/two.py": "import runtime.a.two",
    }
    modules = plant(tmp_path, {**files, "runtime/a/two.py": "", "runtime/top.py": "import runtime.a.one"})
    assert circle(imports(modules)) == []
    assert sorted(circle(folder_graph(modules))[:-1]) == ["runtime/a", "runtime/b"]
    del modules["runtime.b.two"]
    assert circle(folder_graph(modules)) == []


def test_an_upward_arrow_is_seen(tmp_path):
    layers = {"runtime": ("ground", "low other", "__init__", "cli", "low.top")}
    modules = plant(
        tmp_path,
        {
            "runtime/__init__.py": "from runtime.low import a",
            "runtime/ground.py": "from runtime import low",
            "runtime/low/__init__.py": "",
            "runtime/low/a.py": "from runtime.low import b\nimport runtime.ground, runtime.other",
            "runtime/low/b.py": "",
            "runtime/low/top.py": "from runtime.cli import x\nfrom runtime.low import b",
            "runtime/other.py": "from runtime.ground import x",
            "runtime/cli.py": "from runtime import Pipeline\nfrom runtime.low import top",
        },
    )
    assert unknown_rooms(modules, layers) == []
    assert upward_arrows(modules, layers) == [
        "runtime/cli.py imports runtime.low.top, which is not below it",
        "runtime/ground.py imports runtime.low, which is not below it",
        "runtime/low/a.py imports runtime.other, which is not below it",
    ]


def test_layers_that_do_not_fit_the_tree_are_seen(tmp_path):
    modules = plant(tmp_path, {"runtime/a.py": "", "export/a.py": "", "export/room/b.py": ""})
    assert unknown_rooms(modules, {"runtime": ("a", "gone")}) == ["there is no runtime.gone", "export has no layers"]
    with pytest.raises(ValueError, match=r"export\.room\.b is in no layer of export"):
        upward_arrows(modules, {"export": ("a",)})


def test_a_crowded_folder_is_seen(tmp_path):
    files = {f"runtime/room/f{index}.py": "" for index in range(16)}
    assert crowded_folders(plant(tmp_path, files), 16) == []
    assert crowded_folders(plant(tmp_path, {**files, "runtime/room/__init__.py": ""}), 16) == [
        "runtime/room has 17 files"
    ]


def test_a_long_file_is_seen(tmp_path):
    modules = plant(tmp_path, {"runtime/a.py": "x = 1\n" * 300, "runtime/room/b.py": "x = 1\n" * 301})
    assert long_files(modules, 300) == ["runtime/room/b.py has 301 lines"]


def test_a_long_function_is_seen_and_a_reason_that_is_no_longer_needed(tmp_path):
    def function(lines: int) -> str:
        return '    async def f(self):\n        """One.\n\n        Two.\n        """\n' + "        x = 1\n" * (
            lines - 1
        )

    code = "class C:\n" + function(50) + "class D:\n" + function(51)
    modules = plant(tmp_path, {"runtime/room/a.py": code})
    assert long_functions(modules, 50, {}) == ["runtime/room/a.py:D.f has 51 lines"]
    allowed = {"runtime/room/a.py:D.f": "a reason", "runtime/room/a.py:C.f": "a reason"}
    assert long_functions(modules, 50, allowed) == ["runtime/room/a.py:C.f is not long"]


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

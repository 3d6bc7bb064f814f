"""What the wheel holds: all of the packages that ship, with their data, and nothing else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import runtime
from export.build.arguments import build_parser as build_options
from runtime.cli.options import build_parser as generate_options

ROOT = Path(__file__).parents[1]
SHIPPED = ("calibration", "export", "model", "runtime", "serving")
KEPT_BACK = ("scripts", "tests", "training")
FOR_DEVELOPERS = "ruff.toml"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from, with a new room in it that no list can know."""
    copy = tmp_path_factory.mktemp("source")
    for folder in (*SHIPPED, *KEPT_BACK):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".*"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    for folder in ("runtime/planted", "runtime/planted/deep"):
        (copy / folder).mkdir()
        (copy / folder / "__init__.py").write_text("", encoding="utf-8")
    (copy / "runtime/planted/deep/code.py").write_text("", encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, built without a network by the setuptools that is installed."""
    output = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(output)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (file,) = output.glob("*.whl")
    return ZipFile(file)


def test_the_wheel_holds_every_file_of_the_packages_that_ship_and_no_other(source, wheel):
    """Code and data: a folder without ``__init__.py`` or data that pyproject.toml does not name would be missing."""
    files = {file for folder in SHIPPED for file in (source / folder).rglob("*") if file.is_file()}
    wanted = {file.relative_to(source).as_posix() for file in files if file.name != FOR_DEVELOPERS}
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == wanted


@pytest.mark.parametrize(
    "file",
    [
        "runtime/planted/deep/code.py",
        "runtime/tensorrt/engine.py",
        "export/graph/passes/qdq.py",
        "calibration/prompts.txt",
        "export/demo/SHA256SUMS",
        "export/demo/text_encoder/model.safetensors",
        "export/triton/operators.md",
        "runtime/py.typed",
        "serving/py.typed",
        "model/py.typed",
    ],
)
def test_the_wheel_holds(wheel, file):
    """By name, since a file that the source lost is missing on both sides above."""
    assert file in wheel.namelist()


def test_the_version_comes_from_one_place(wheel, capsys):
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    assert f"\nVersion: {runtime.__version__}\n" in wheel.read(metadata).decode()
    for parser, program in (
        (generate_options(), "trt-generate"),
        (build_options("export.build"), "python -m export.build"),
    ):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"{program} {runtime.__version__}\n"


def test_every_extra_has_a_reason():
    """A comment above each, as a requirement that nobody remembers is one that nobody removes."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    extras = re.findall(r"^(.*)\n([\w-]+) = \[", "\n" + section, re.MULTILINE)
    assert [name for _, name in extras] == re.findall(r"^([\w-]+) = \[", section, re.MULTILINE)
    assert [name for above, name in extras if not above.startswith("# ")] == []

"""The client script against the real server: files that equal those of ``trt-generate``, and its errors."""

import re

import pytest

from runtime.cli.main import main as trt_generate
from scripts.triton.client import main

SETTINGS = ["--prompt", "zwei Kreise 🙂", "--seed", "5", "--steps", "3", "--mu", "0.3", "--width", "320"]
SETTINGS += ["--num-images", "2"]
WAYS = [(protocol, stream) for protocol in ("http", "grpc") for stream in ([], ["--stream"])]


@pytest.fixture(scope="module")
def wanted(demo_bundle, tmp_path_factory):
    """What ``trt-generate`` writes."""
    folder = tmp_path_factory.mktemp("wanted")
    arguments = ["--bundle", str(demo_bundle), "--threads", "1", "--quiet", "--output", str(folder / "a.png")]
    assert trt_generate([*arguments, *SETTINGS]) == 0
    return [(folder / f"a-{index}.png").read_bytes() for index in range(2)]


@pytest.mark.parametrize(("protocol", "stream"), WAYS, ids=str)
def test_files_equal_those_of_trt_generate(server, wanted, tmp_path, capsys, protocol, stream):
    arguments = ["--protocol", protocol, "--url", getattr(server, protocol), *stream]
    assert main([*arguments, *SETTINGS, "--guidance-schedule", "7x2,3", "--output", str(tmp_path / "b.png")]) == 0
    assert main([*arguments, *SETTINGS, "--output", str(tmp_path / "a.png")]) == 0
    assert [(tmp_path / f"a-{index}.png").read_bytes() for index in range(2)] == wanted
    assert (tmp_path / "b-0.png").read_bytes() != wanted[0]
    assert "wrote" in capsys.readouterr().err


@pytest.mark.parametrize(("protocol", "stream"), WAYS, ids=str)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--steps", "0"], "the number of steps is 0, wanted 1 to 1000"),
        (["--prompt", "x", "--model", "nobody"], "nobody.*(unknown model|not found)"),
        (["--prompt", "x", "--url", "127.0.0.1:9"], "[Cc]onnection refused"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(server, tmp_path, capsys, protocol, stream, arguments, message):
    address = ["--protocol", protocol, "--url", getattr(server, protocol), "--output", str(tmp_path / "a.png")]
    assert main([*address, *stream, *arguments]) == 1
    line = capsys.readouterr().err.strip().split("\r")[-1].strip()
    assert line.startswith("scripts.triton.client: error: ") and "\n" not in line and re.search(message, line)
    assert list(tmp_path.iterdir()) == []


def test_errors_without_a_server(tmp_path, capsys):
    output = tmp_path / "a.png"
    assert main(["--prompt", "x", "--seed", str(2**63), "--output", str(output)]) == 1
    assert f"seed is {2**63}, wanted a number of type INT64" in capsys.readouterr().err
    output.write_bytes(b"mine")
    assert main(["--prompt", "x", "--output", str(output)]) == 1
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert output.read_bytes() == b"mine"

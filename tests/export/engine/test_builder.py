"""TensorRT-RTX's builder: full disks, refused graphs, interrupts."""

import signal
import sys
import time
from pathlib import Path

import pytest
from support.engines.real import stage_options
from support.processes import shell_code, start
from support.terminal import Terminal

from export.demo_model import DEMO_CHECKPOINT
from export.engine.builder import build_plan
from export.graph.stage import export_stage
from model.checkpoint.directory import open_checkpoint


@pytest.fixture
def small_graph(tmp_path):
    """The demo's unconditional transformer in TensorRT's form, and the shapes to build it for."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    options = stage_options(checkpoint, "dit_uncond", "base", "bf16", linked=False)
    spec, _ = export_stage(checkpoint, "dit_uncond", options, tmp_path, quiet=True)
    shapes = {"latents": (1, 64, 128), "timestep": (1,), "rope_cos": (64, 64), "rope_sin": (64, 64)}
    return tmp_path / spec.onnx, {name: (shape, shape, shape) for name, shape in shapes.items()}


def test_full_disk_leaves_no_plan(small_graph, tmp_path, monkeypatch):
    """Writing fails half-way, as on a disk that fills up."""
    onnx, shapes = small_graph
    real = Path.open

    class Full:
        def __init__(self, stream):
            self.stream, self.left = stream, 100_000

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.stream.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.stream.close()

    def opened(file, *arguments, **named):
        stream = real(file, *arguments, **named)
        return Full(stream) if arguments == ("xb",) else stream

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(OSError, match=r"cannot write x.plan: No space left on device"):
        build_plan(onnx, tmp_path / "x.plan", "rtx", ("sm89",), [shapes])
    assert not (tmp_path / "x.plan").exists()


def test_refused_graph_has_the_builders_reason(small_graph, tmp_path):
    """A profile whose rope tables do not fit the latents."""
    onnx, shapes = small_graph
    wrong = shapes | {"rope_cos": ((65, 64),) * 3}
    with pytest.raises(RuntimeError, match=r"TensorRT-RTX cannot build dit_uncond: .*(rope_cos|dimension|broadcast)"):
        build_plan(onnx, tmp_path / "x.plan", "rtx", ("sm89",), [wrong])
    assert not (tmp_path / "x.plan").exists()


def test_what_progress_raises_ends_the_build(small_graph, tmp_path, capfd):
    """The bindings would print it and build on."""
    onnx, shapes = small_graph

    def progress(phase, step, steps):
        raise LookupError(f"no bar for {phase}")

    with pytest.raises(LookupError, match="no bar for "):
        build_plan(onnx, tmp_path / "x.plan", "rtx", ("sm89",), [shapes], progress)
    assert not (tmp_path / "x.plan").exists() and "Exception caught" not in capfd.readouterr().err


def test_interrupt_inside_the_builder(wide, tmp_path):
    """Two seconds into an engine's build. Python must not end before the builder has, which would abort the process."""
    command = [
        sys.executable,
        "-m",
        "export.build",
        "--checkpoint",
        wide.directory,
        "--precision",
        "fp8-weight-only",
        "--backend",
        "rtx",
        "--output",
        tmp_path / "bundle",
    ]
    terminal = Terminal()  # elsewhere the builder's steps are not shown
    process = start(command, stderr=terminal.side)
    terminal.wait_for(r"dit_cond: .* \d+/\d+")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    error = terminal.rest()
    process.wait(timeout=30)
    assert shell_code(process) == 130, error[-2000:]
    assert error.endswith("export.build: interrupted\r\n") and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []

"""Run the real Triton Inference Server on this machine's CPU, without docker: the binary in the nvidia-pytriton wheel.

    python -m scripts.triton.server REPOSITORY                             # until Ctrl-C; prints the addresses
    python -m scripts.triton.server REPOSITORY -- COMMAND {http} {grpc}    # until COMMAND ends; {…} are addresses

The extra ``triton`` installs what it needs (Linux with glibc 2.35 or newer; x86_64 or aarch64). The server is Triton
2.51 (24.10) with the Python backend and listens on 127.0.0.1 only, on free ports. It is for tests, demonstrations and
measuring, not for production: for that there are NVIDIA's images.

The wheel's Python backend comes without its stub, the program that runs a model in a process of its own, and keeps
one for each Python version elsewhere. The stub must lie beside the backend's library, and both find their libraries
by relative paths; so the server's directories are laid out afresh in a temporary directory. The stub finds its Python
environment through ``python3`` on PATH.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.console import guard

HOST = "127.0.0.1"
STUB = "triton_python_backend_stub"
"""The program that runs an instance of a model."""
LOAD_ALL = ("--model-control-mode=explicit", "--load-model=*")
READY_PATIENCE = 60.0
"""Seconds to wait for the models; the Python backend itself gives up on a model after 30."""
EXIT_PATIENCE = 30
"""Seconds that the server may take to finish what it is doing after SIGTERM (``--exit-timeout-secs``)."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    http: str
    """Address, as in 127.0.0.1:8000."""
    grpc: str
    metrics: str
    """URL of the metrics page."""
    process: subprocess.Popen[bytes]
    log: Path
    """What the server and the models print."""
    ready_seconds: float
    """From the start of the process to readiness."""


@contextlib.contextmanager
def serve(
    repository: Path, options: Sequence[str] = LOAD_ALL, exit_patience: int = EXIT_PATIENCE, log: Path | None = None
) -> Iterator[Server]:
    """A server of the model repository, ready; it is stopped in the end, its models' processes with it.

    Args:
        repository: directory of models.
        options: further command-line options of tritonserver; by default it loads all models and can unload them.
        exit_patience: seconds that it may take to end.
        log: where to write what it prints; None for a temporary file.

    Raises:
        RuntimeError: the wheel is not installed, the server ended, or it is not ready in time; the message ends with
            its log.
    """
    with tempfile.TemporaryDirectory(prefix="triton-") as folder, contextlib.ExitStack() as stack:
        home = lay_out(Path(folder))
        file = log or Path(folder, "server.log")
        ports = free_ports(3)
        prefix = shared_memory_prefix(ports[0])
        stream = stack.enter_context(file.open("wb"))
        started = time.perf_counter()
        process = subprocess.Popen(
            [*server_command(home, repository, ports, prefix, exit_patience), *options],
            cwd=folder,
            env=environment(folder),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_ready(process, ports[0], file)
            http, grpc, metrics = (f"{HOST}:{port}" for port in ports)
            seconds = time.perf_counter() - started
            yield Server(http, grpc, f"http://{metrics}/metrics", process, file, seconds)
        finally:
            stop(process, exit_patience)
            for shared in Path("/dev/shm").glob(f"{prefix}*"):
                shared.unlink(missing_ok=True)


def server_command(home: Path, repository: Path, ports: Sequence[int], prefix: str, exit_patience: int) -> list[str]:
    """The server's command line. Models bring complete configurations: asking them would start each one twice."""
    http, grpc, metrics = map(str, ports)
    return [
        str(home / "bin" / "tritonserver"),
        "--model-repository",
        str(repository.absolute()),
        "--backend-directory",
        str(home / "backends"),
        "--cache-directory",
        str(home / "caches"),
        "--http-address",
        HOST,
        "--grpc-address",
        HOST,
        "--metrics-address",
        HOST,
        "--http-port",
        http,
        "--grpc-port",
        grpc,
        "--metrics-port",
        metrics,
        "--allow-gpu-metrics=false",
        "--disable-auto-complete-config",
        "--exit-timeout-secs",
        str(exit_patience),
        "--backend-config",
        f"python,shm-region-prefix-name={prefix}",
    ]


def environment(folder: str) -> dict[str, str]:
    """The server's environment variables: the stub is to run this Python, whose library may be anywhere."""
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # models bring their own
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "TMPDIR": folder,
    }


def lay_out(folder: Path) -> Path:
    """The server's directories below `folder`, as deep as in the wheel; returns the one that holds them."""
    packages = Path(sysconfig.get_paths()["platlib"])
    source, home = packages / "pytriton" / "tritonserver", folder / "pytriton" / "tritonserver"
    if not source.is_dir():
        raise RuntimeError(f"nvidia-pytriton is not installed in {packages}; install the extra 'triton'")
    version = "{}.{}".format(*sys.version_info)
    stub = source / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        raise RuntimeError(f"nvidia-pytriton has no stub for Python {version}")
    (folder / "nvidia_pytriton.libs").symlink_to(packages / "nvidia_pytriton.libs")
    for part in ("bin", "backends"):
        shutil.copytree(source / part, home / part)
    (home / "caches").symlink_to(source / "caches")
    (home / "bin" / "tritonserver").chmod(0o755)
    backend = home / "backends" / "python"
    shutil.copy(stub, backend)
    (backend / stub.name).chmod(0o755)
    return home


def model_processes(server: Server) -> list[int]:
    """Process ids of the models' instances, which a running server may change."""
    prefix = shared_memory_prefix(int(server.http.split(":")[1])).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            command = (process / "cmdline").read_bytes()
            if STUB.encode() in command.split(b"\0")[0] and prefix in command:
                found.append(int(process.name))
    return found


def shared_memory_prefix(port: int) -> str:
    """How the names of a server's shared memory begin: unlike those of other servers on this machine."""
    return f"triton-{os.getpid()}-{port}-"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait for the server and all its models; RuntimeError if it ends or takes too long."""
    deadline = time.perf_counter() + READY_PATIENCE
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"tritonserver ended with {process.returncode}:\n{errors(log)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/v2/health/ready", timeout=5):
            return
        time.sleep(0.02)
    raise RuntimeError(f"tritonserver is not ready after {READY_PATIENCE:g} s:\n{errors(log)}")


def errors(log: Path) -> str:
    """The log's errors, or its end when there are none."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if re.match(r"E\d{4} ", line)][-10:] or lines[-40:])


def stop(process: subprocess.Popen[bytes], patience: int) -> None:
    """End the server as Kubernetes does: SIGTERM, and SIGKILL to all its processes when that takes too long.

    It finishes what it is doing, even beyond the patience that it was started with.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.terminate()
        process.wait(patience + 5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(repository: Path, command: Sequence[str]) -> None:
    """Serve until `command` ends, which decides the exit code, or without one until the server does."""
    with serve(repository) as server:
        addresses = f"HTTP {server.http}, gRPC {server.grpc}, metrics {server.metrics}"
        print(f"ready after {server.ready_seconds:.2f} s: {addresses}", file=sys.stderr, flush=True)
        if not command:
            server.process.wait()
        elif code := subprocess.call([part.format(http=server.http, grpc=server.grpc) for part in command]):
            raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of COMMAND."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.triton.server",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", type=Path, metavar="REPOSITORY", help="from python -m export.triton")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="after --: what to run while the server is up")
    args = parser.parse_args(argv)
    return guard("scripts.triton.server", lambda: run(args.repository, args.command))


if __name__ == "__main__":
    sys.exit(main())

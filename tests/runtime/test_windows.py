"""The runtime without what only POSIX systems have: a stand-in for Windows, where most RTX cards are."""

import ast
import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import runtime
from runtime import host_memory

ROOT = Path(runtime.__file__).parents[1]
MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
"""Of Python's library, what Windows does not have."""
_TEXT = """
chown chroot ctermid fchmod fchown fork forkpty getegid geteuid getgid getpgid getuid initgroups killpg lchown
mkfifo mknod nice openpty pread preadv pwrite sched_getaffinity setgid setsid setuid statvfs fstatvfs sysconf
uname wait3 wait4 O_NOFOLLOW O_DIRECTORY O_TMPFILE O_SYNC memfd_create posix_fadvise posix_fallocate
"""
NAMES = set(_TEXT.split())
"""Of the module ``os``, what Windows does not have and a program like this may want."""
SIGNALS = {"SIGHUP", "SIGKILL", "SIGPIPE", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGSTOP", "SIGCONT", "alarm"}

SCRIPT = f"""
import os, signal, sys
MODULES, NAMES, SIGNALS = {MODULES!r} - {{"posix"}}, {NAMES!r}, {SIGNALS!r}
import importlib, pathlib, shutil, subprocess, tempfile, onnxruntime, numpy, PIL.Image, tokenizers, tqdm, hashlib
for name in MODULES:
    sys.modules[name] = None  # an import fails
for module, names in ((os, NAMES), (signal, SIGNALS)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
def refuse(*_):
    raise OSError(1, "this file system has no hard links")
os.link = refuse
root = pathlib.Path(sys.argv[1])
for file in sorted((root / "runtime").rglob("*.py")):
    if file.name != "__main__.py":
        importlib.import_module(".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"))
from runtime.cli.main import main
sys.exit(main(["--bundle", sys.argv[2], "--prompt", "x", "--steps", "1", "--output", sys.argv[3], "--seed", "1"]))
"""


def test_pictures_are_made_without_what_windows_lacks(demo_bundle, tmp_path):
    """All modules are imported, and the command runs, with those names taken away."""
    command = [sys.executable, "-c", SCRIPT, str(ROOT), str(demo_bundle), str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def unwanted(text):
    """What a file names of the above, without a look at whether it is there."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0]} & MODULES
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            wanted = {"os": NAMES, "signal": SIGNALS}.get(node.value.id, set())
            found |= {node.attr} & wanted
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(("/proc", "/dev/"))
        ):
            found.add(node.value)
    return found


def test_no_file_names_what_windows_lacks():
    found = {
        file.relative_to(ROOT).as_posix(): names
        for file in (ROOT / "runtime").rglob("*.py")
        if (names := unwanted(file.read_text(encoding="utf-8")))
    }
    assert found == {
        "runtime/file_locks.py": {"fcntl"},
        "runtime/selftest/memory.py": {"/proc/self/clear_refs", "/proc/self/status"},
    }, "which do without where there is none"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import fcntl", "fcntl"),
        ("def f():\n    from resource import getrlimit", "resource"),
        ("import os\nos.pread(1, 2, 3)", "pread"),
        ("import signal\nsignal.signal(signal.SIGHUP, f)", "SIGHUP"),
        ("open('/proc/meminfo')", "/proc/meminfo"),
    ],
)
def test_what_is_looked_for_is_found(line, name):
    assert unwanted(line) == {name}


def test_memory_that_windows_has(monkeypatch):
    """The call is given a structure of the size that Windows wants."""

    def status_of(pointer):
        status = pointer._obj
        assert status.length == ctypes.sizeof(status) == 64
        status.available = 12 << 30
        return 1

    monkeypatch.setattr(sys, "platform", "win32")
    kernel = SimpleNamespace(GlobalMemoryStatusEx=status_of)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert host_memory.available_memory() == 12 << 30
    kernel.GlobalMemoryStatusEx = lambda pointer: 0
    assert host_memory.available_memory() is None

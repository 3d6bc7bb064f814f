"""How the commands end when nobody can read what they say."""

import json
import subprocess
import sys

import pytest
from support.processes import ROOT

from runtime.console import json_text

SCRIPT = """
import sys
from runtime.console import guard
def job():
    with open("made", "w") as file:
        {job}
        file.write("all")
sys.exit(guard("program", job))
"""


def shell(folder, job, streams):
    """The exit code and the standard error of a command whose standard streams are redirected as a shell does it."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(job=job))
    command = f'set -o pipefail; "{sys.executable}" "{script}" {streams}'
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-"])
def test_messages_that_nobody_gets_are_no_failure(tmp_path, streams):
    job = "print('message', file=sys.stderr, flush=True); sys.stderr.write('more'); import os; os.write(2, b'raw')"
    if streams == "2>/dev/full":
        job = job.replace("os.write(2, b'raw')", "pass")
    done = shell(tmp_path, job, streams)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text() == "all", "a file took the closed stream's number"


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
def test_errors_have_their_exit_code_all_the_same(tmp_path, streams):
    assert shell(tmp_path, "raise ValueError('bad')", streams).returncode == 1


def test_output_that_nobody_reads_ends_a_command_like_others(tmp_path):
    job = "[print('x' * 1000) for _ in range(1000)]"
    done = shell(tmp_path, job, "| head -1 >/dev/null")
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.parametrize("lines", [1, 10_000])
def test_output_that_cannot_be_written_is_an_error(tmp_path, lines):
    done = shell(tmp_path, f"[print('x' * 100) for _ in range({lines})]", ">/dev/full")
    assert done.returncode == 1 and done.stderr == "program: error: No space left on device\n"


@pytest.mark.parametrize("value", ["日本", "caf\udce9", "a"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_holds_any_text(value, encoding):
    text = json_text({"k": value}, encoding)
    assert json.loads(text.encode(encoding)) == {"k": value}

"""Builds that were killed and go on."""

import signal
import sys
import time

import pytest
from support.processes import shell_code, start

from export.build.command import main
from export.build.finished.ledger import LEDGER
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda sent: sent.name)
def test_killed_build_goes_on_where_it_was(tmp_path, sent, capsys):
    """After its first finished stage; the second run takes it over and leaves nothing but the bundle."""
    command = [sys.executable, "-m", "export.build", "--output", tmp_path / "bundle"]
    process = start(command)
    ledger = tmp_path / ".bundle.partial" / LEDGER
    deadline = time.monotonic() + 300
    while not ledger.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert shell_code(process) == 128 + sent and "Traceback" not in error
    assert "text_encoder" in ledger.read_text() and not (tmp_path / "bundle").exists()
    assert main(["--output", str(tmp_path / "bundle")]) == 0
    again = capsys.readouterr().err
    assert "ort/text_encoder" in again and "unchanged, taken" in again
    check_files(tmp_path / "bundle", read_manifest(tmp_path / "bundle").files)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

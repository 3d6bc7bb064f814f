"""The build command as the tests call it."""

from export.build.command import main


def refused(capsys, tmp_path, message, *arguments):
    """The command fails with `message` and leaves `tmp_path` as it was."""
    before = sorted(tmp_path.rglob("*"))
    assert main(["--output", str(tmp_path / "bundle"), "--quiet", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("export.build: error: ") and "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before

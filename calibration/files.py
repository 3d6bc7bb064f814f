"""Output files that appear whole or not at all."""

import contextlib
import os
import tempfile
from pathlib import Path


def check_output(output: Path, overwrite: bool) -> None:
    """Raise FileExistsError, FileNotFoundError or PermissionError unless `output` may be written."""
    if output.is_dir():
        raise FileExistsError(
            f"the output {output} is a directory, wanted a file name such as {output / 'ranges.json'}"
        )
    if output.exists() and not overwrite:
        raise FileExistsError(f"the output {output} exists; choose another --output or add --overwrite")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"the output directory {output.parent} does not exist")
    if not os.access(output.absolute().parent, os.W_OK):
        raise PermissionError(f"cannot write to {output.parent}")


def write_whole(file: Path, content: bytes) -> None:
    """Write `file` under a temporary name in its directory, then rename it; an existing file is replaced."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp's files are private
        os.replace(name, file)
    except BaseException:  # Ctrl-C included
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise

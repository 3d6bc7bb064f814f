"""Files that appear whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType


def check_outputs(files: Sequence[Path], overwrite: bool) -> None:
    """Raise FileExistsError or FileNotFoundError unless all files may be written."""
    for file in files:
        if file.is_dir():
            raise FileExistsError(f"the output {file} is a directory, wanted a file name such as {file / 'output'}")
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise FileExistsError(f"the output {file} is a link or a device, wanted a plain file")
        if file.exists() and not overwrite:
            raise FileExistsError(f"the output {file} exists; choose another --output or add --overwrite")
        if not file.absolute().parent.is_dir():
            raise FileNotFoundError(f"the output directory {file.parent} does not exist")


def write_whole(file: Path, content: bytes) -> None:
    """Write one file; an existing one is replaced."""
    with PendingFiles([file], overwrite=True) as pending:
        pending.commit([content])


class PendingFiles:
    """Files that get their names only when all of them are written.

    Entering the context creates an empty hidden file beside each name, so that a directory that cannot be written is
    found before the work starts. Leaving it without `commit` removes them.
    """

    def __init__(self, files: Sequence[Path], overwrite: bool) -> None:
        """Raises as `check_outputs` does."""
        check_outputs(files, overwrite)
        self.files = files
        self.pending: list[Path] = []

    def __enter__(self) -> "PendingFiles":
        try:
            for file in self.files:
                handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
                os.close(handle)
                self.pending.append(Path(name))
        except OSError as error:
            self._remove()
            raise PermissionError(f"cannot write to {file.parent}: {error.strerror}") from error
        return self

    def commit(self, contents: Sequence[bytes]) -> None:
        """Write the contents, then give all files their names."""
        mask = os.umask(0)
        os.umask(mask)
        for pending, content in zip(self.pending, contents, strict=True):
            pending.write_bytes(content)
            pending.chmod(0o666 & ~mask)  # mkstemp's files are private
        for pending, file in zip(self.pending, self.files, strict=True):
            os.replace(pending, file)
        self.pending = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for pending in self.pending:
            with contextlib.suppress(OSError):
                pending.unlink()

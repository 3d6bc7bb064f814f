"""Check a bundle's files against the sizes and hashes in its manifest."""

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.bundle.manifest import FileSpec
from runtime.bundle.verified import Verified
from runtime.errors import BundleError

GRAPHS = "onnx"
"""Folder of graphs and weights; graphs can name any file in it, so it may hold none that is not hashed."""
_CHUNK = 4 << 20


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _listed(file: Path, directory: Path, files: dict[str, FileSpec]) -> bool:
    return file.is_dir() or file.relative_to(directory).as_posix() in files


def check_files(
    directory: Path,
    files: dict[str, FileSpec],
    hashes: bool = True,
    *,
    used: Collection[str] | None = None,
    verified: Verified | None = None,
) -> None:
    """Check the files of a bundle.

    The sizes of all files are checked before the first byte is hashed. hashlib lets go of the interpreter lock, so
    two files are hashed at a time.

    Args:
        directory: of the bundle.
        files: of its manifest.
        hashes: compare the SHA-256 of files, not only their sizes.
        used: the files to hash; None for all of them.
        verified: what need not be hashed again, and remembers what was; None to hash in any case.

    Raises:
        BundleError: a file is missing, no plain one, not as long as listed, or altered, or the graphs' folder holds
            one that is not listed.
    """
    if unlisted := [file for file in (directory / GRAPHS).rglob("*") if not _listed(file, directory, files)]:
        raise BundleError(f"the bundle's file {unlisted[0]} is not in its manifest; copy or build the bundle again")
    status = {path: _status(directory / path, spec) for path, spec in files.items()}
    if not hashes:
        return
    wanted = [path for path in files if used is None or path in used]
    left = [path for path in wanted if not (verified and verified.knows(path, status[path], files[path].sha256))]
    with ThreadPoolExecutor(2) as pool:
        digests = pool.map(sha256, [directory / path for path in left])
        for path, digest in zip(left, digests, strict=True):
            if digest != files[path].sha256:
                raise BundleError(
                    f"the bundle's file {directory / path} is altered: "
                    f"SHA-256 {digest[:12]}…, wanted {files[path].sha256[:12]}…"
                )
    if verified:
        verified.keep({path: (status[path], files[path].sha256) for path in left})


def _status(file: Path, spec: FileSpec) -> os.stat_result:
    """What the file system says of a file; BundleError unless it is a plain one of the wanted size."""
    if not file.is_file() or file.is_symlink():
        raise BundleError(f"the bundle's file {file} is missing; copy or build the bundle again")
    status = file.stat()
    if status.st_size != spec.size:
        raise BundleError(
            f"the bundle's file {file} has {status.st_size} bytes, wanted {spec.size}: it is truncated or altered"
        )
    return status

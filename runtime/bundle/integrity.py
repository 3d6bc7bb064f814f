"""Check a bundle's files against the sizes and hashes in its manifest."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runtime.bundle.manifest import FileSpec
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


def check_files(directory: Path, files: dict[str, FileSpec], hashes: bool = True) -> None:
    """Raise BundleError unless every file is there and a plain one, as long as listed and (with `hashes`) unaltered,
    and the graphs' folder holds no other.

    The sizes of all files are checked before the first byte is hashed. hashlib lets go of the interpreter lock, so
    two files are hashed at a time.
    """
    if unlisted := [file for file in (directory / GRAPHS).rglob("*") if not _listed(file, directory, files)]:
        raise BundleError(f"the bundle's file {unlisted[0]} is not in its manifest; copy or build the bundle again")
    for path, spec in files.items():
        file = directory / path
        if not file.is_file() or file.is_symlink():
            raise BundleError(f"the bundle's file {file} is missing; copy or build the bundle again")
        if (size := file.stat().st_size) != spec.size:
            raise BundleError(
                f"the bundle's file {file} has {size} bytes, wanted {spec.size}: it is truncated or altered"
            )
    if not hashes:
        return
    with ThreadPoolExecutor(2) as pool:
        digests = pool.map(sha256, [directory / path for path in files])
        for (path, spec), digest in zip(files.items(), digests, strict=True):
            if digest != spec.sha256:
                raise BundleError(
                    f"the bundle's file {directory / path} is altered: "
                    f"SHA-256 {digest[:12]}…, wanted {spec.sha256[:12]}…"
                )

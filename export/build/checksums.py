"""Compare a checkpoint's files with checksums that came with them.

Three kinds are known: ``SHA256SUMS`` as coreutils writes it; the records that ``hf download --local-dir`` keeps
(``.cache/huggingface/download/**.metadata``, whose second line is the SHA-256 of a large file); and the names of large
files in huggingface_hub's cache. Without any of them a flipped bit in a weight file cannot be told from a weight.
"""

from collections.abc import Callable
from pathlib import Path

from model.checkpoint.hub import blob_digests, is_digest
from model.checkpoint.tensor_files import CheckpointError
from runtime.bundle.integrity import sha256
from runtime.errors import shown
from runtime.progress import Progress

SUMS = "SHA256SUMS"
_HUB_RECORDS = Path(".cache/huggingface/download")


def check_recorded(directory: Path, quiet: bool) -> None:
    """Compare the files of a checkpoint directory with what it records of them; CheckpointError as for `verify`."""
    if digests := recorded(directory):
        total = sum(file.stat().st_size for file in digests if file.is_file())
        with Progress("checksums", total, "B", quiet=quiet) as progress:
            verify(digests, progress.update)


def recorded(directory: Path) -> dict[Path, str]:
    """SHA-256 digests that a checkpoint directory records, by file, in small letters.

    Raises:
        CheckpointError: a record is not text, or a line of `SUMS` is not a digest and a file name.
    """
    digests = blob_digests(directory)
    records = directory / _HUB_RECORDS
    for record in sorted(records.rglob("*.metadata")):
        lines = _text(record).split()
        file = directory / record.relative_to(records).with_suffix("")
        if len(lines) > 1 and is_digest(lines[1]) and file.is_file():
            digests[file] = lines[1]
    if (sums := directory / SUMS).is_file():
        for line in _text(sums).splitlines():
            digest, _, name = line.partition(" ")
            digest = digest.lower()  # some tools write capitals
            if not is_digest(digest) or not name.strip():
                raise CheckpointError(f"{sums} has the line {shown(line)}, wanted a SHA-256 and a file name")
            digests[directory / name.strip().removeprefix("*")] = digest
    return digests


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 text: {error}") from error


def verify(digests: dict[Path, str], progress: Callable[[int], object]) -> None:
    """Raise CheckpointError for the first file that is missing or differs; reports the bytes read to `progress`."""
    for file, digest in digests.items():
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, though the checkpoint records its checksum")
        if (found := sha256(file)) != digest:
            raise CheckpointError(f"{file} is damaged: SHA-256 {found[:12]}…, wanted {digest[:12]}…; download it again")
        progress(file.stat().st_size)

"""A model in huggingface_hub's cache, laid out as huggingface_hub does it."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, model: str, files: Mapping[str, bytes]) -> Path:
    """Put a model's files into the cache; returns the snapshot's directory.

    Files of the Git repository itself are named by their Git hash, large ones (here all safetensors) by their SHA-256.
    """
    folder = cache / f"models--{model.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for name, data in files.items():
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        blob = folder / "blobs" / (hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git)
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot

"""Checkpoints by the name that people give them: a directory, or the id of a model on the Hugging Face Hub.

huggingface_hub downloads and keeps them, with its own settings: the token of ``HF_TOKEN`` or ``hf auth login``, the
cache below ``HF_HOME``, and no network with ``HF_HUB_OFFLINE=1``. There ``models--OWNER--NAME/snapshots/COMMIT`` holds
symbolic links to ``blobs``, which are named by their hashes. Needs no torch.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import SHOWN, cut
from runtime.progress import Progress

EXAMPLE = "ideogram-ai/ideogram-4-fp8"
"""A Hub id, for messages."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "unconditional_transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}
FILES = (
    "model_index.json",
    *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.*")),
    *(f"{folder}/config.json" for folder in _STEMS),
    *(f"{folder}/{stem}.safetensors" for folder, stem in _STEMS.items()),
    *(f"{folder}/{stem}-*.safetensors" for folder, stem in _STEMS.items()),
    *(f"{folder}/{stem}.safetensors.index.json" for folder, stem in _STEMS.items()),
)
"""Shell patterns of what is read of a repository; the rest, such as other precisions of the weights, stays there."""


def checkpoint_directory(given: str | Path, revision: str | None = None, quiet: bool = False) -> Path:
    """The directory of a checkpoint; that of a Hub id is in huggingface_hub's cache, after a download if need be.

    Args:
        given: a path, or a Hub id such as `EXAMPLE`. A path that exists is meant as one.
        revision: branch, tag or commit of a Hub id; None for its main branch.
        quiet: show no progress.

    Raises:
        FileNotFoundError: there is neither such a directory nor such a repository or revision, or it is not in the
            cache and cannot be downloaded.
        PermissionError: access has not been granted.
        ValueError: a revision of a directory is asked for.
        OSError: the download failed.
    """
    if Path(given).exists():
        if revision is not None:
            raise ValueError(f"--revision {cut(revision, SHOWN)} goes with a Hub id, and {given} is a path")
        return Path(given)
    if not _ID.fullmatch(str(given)):
        raise FileNotFoundError(
            f"there is no checkpoint directory {given}; wanted a directory, or the id of a model on the Hugging Face "
            f"Hub, such as {EXAMPLE}"
        )
    # On a terminal, huggingface_hub has bars of its own.
    with Progress(f"fetching {given}", quiet=quiet or sys.stderr.isatty()), _bars(not quiet):
        return _snapshot(str(given), revision)


def _snapshot(model: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{model}"
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except GatedRepoError as error:
        raise PermissionError(
            f"{model} is gated: accept its terms on {page}, then log in with 'hf auth login' or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is neither a directory {model} nor a model {page}; to see a private one, log in with "
            "'hf auth login' or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{model} has no revision {revision}, wanted a branch, tag or commit of {page}"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE forbids a download" if constants.HF_HUB_OFFLINE else f"{page} cannot be reached"
        raise FileNotFoundError(
            f"there is no directory {model}, nor all of that model in the cache {constants.HF_HUB_CACHE}, and {reason}"
        ) from error
    except Exception as error:  # of the HTTP library below, httpx or requests by version: they share no other class
        raise OSError(f"cannot download {page}: {str(error).partition(chr(10))[0] or type(error).__name__}") from error


@contextlib.contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Without huggingface_hub's progress bars, unless they are to be `shown`."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def hub_id(directory: Path) -> str | None:
    """The Hub id of a snapshot in huggingface_hub's cache; None for any other directory."""
    found = _SNAPSHOT.fullmatch("/".join(directory.resolve().parts[-3:]))
    return f"{found['owner']}/{found['name']}" if found else None


def model_name(directory: Path) -> str:
    """What a checkpoint's model is called: by its Hub id, else by its directory's name."""
    return hub_id(directory) or written_name(directory.resolve())


def written_name(path: Path) -> str:
    """The last part of a path as text that files in UTF-8 can hold, whatever bytes the file system has in it."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def blob_digests(directory: Path) -> dict[Path, str]:
    """SHA-256 of the large files of a snapshot in huggingface_hub's cache, which are the names of their blobs."""
    blobs = {file: file.resolve() for file in directory.rglob("*") if file.is_symlink()}
    return {file: blob.name for file, blob in blobs.items() if blob.parent.name == "blobs" and is_digest(blob.name)}


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256 as hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None

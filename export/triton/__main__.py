"""``python -m export.triton``: bundle in, model repository for Triton Inference Server out."""

import logging
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from export.atomic_directory import check_apart, check_directory, rename, unfinished
from export.triton.arguments import build_parser
from export.triton.config import ModelConfig
from export.triton.readme import TITLE, readme_text
from export.triton.repository import VERSION, Repository, write_repository
from runtime.bundle.integrity import check_files
from runtime.bundle.manifest import read_manifest
from runtime.console import guard
from runtime.constants import MANIFEST
from runtime.errors import shown
from runtime.progress import Progress
from runtime.request import MAX_IMAGES
from runtime.selftest.contents import SELF_TEST
from serving.tensors import INPUTS

PROGRAM = "export.triton"
README = "README.md"
MAX_INSTANCES = 64
_LEAST_WORK = 5
"""What the warm-up of the largest model's default size needs, in million pixels."""
_SPARE_BYTES = 4 << 20
"""Disk space wanted beyond the bundle: code and configuration."""


def generate(
    bundle: Path,
    output: Path,
    model: ModelConfig | None = None,
    *,
    bundle_path: str | None = None,
    stream: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> None:
    """Write a model repository; see the command's options.

    Raises:
        FileExistsError: `output` exists and may not be replaced.
        FileNotFoundError: there is no bundle.
        ValueError: an option is out of range, `output` is the bundle or lies inside or around it, or the bundle is
            damaged.
        OSError: the disk is too small or cannot be written. Nothing is left behind in any of these cases.
    """
    check_apart(output, bundle, "the bundle")
    check_directory(output, overwrite, "model repository", lambda: _made_here(output))
    model = replace(model or ModelConfig(), bundle=bundle_path or "")
    _check(model, bundle_path)
    repository = Repository(model, stream)
    manifest = read_manifest(bundle)
    if model.self_test and SELF_TEST not in manifest.files:
        raise ValueError(f"--self-test wants a bundle with a {SELF_TEST}, and {bundle} has none; build it again")
    total = sum((bundle / path).stat().st_size for path in (*manifest.files, MANIFEST) if (bundle / path).exists())
    if repository.copies_bundle:
        _check_space(output, total)
    with unfinished(output) as partial:
        check_files(bundle, manifest.files, hashes=model.verify)
        with Progress("copying the bundle", total, "B", quiet=quiet or not repository.copies_bundle) as bar:
            write_repository(repository, bundle, manifest, partial, bar.update)
        (partial / README).write_text(readme_text(repository, manifest), encoding="utf-8")
        rename(partial, output)
    if not quiet:
        print(f"wrote {output} with {' and '.join(model.name for model in repository.models)}", file=sys.stderr)


def _check(model: ModelConfig, bundle_path: str | None) -> None:
    if not model.dynamic_batching and (model.queue_delay, model.queue_limit, model.queue_seconds) != (None, None, None):
        raise ValueError("--queue-delay, --queue-limit and --queue-seconds go with --dynamic-batching")
    # Triton's Python backend refuses most other characters, which a shell would interpret.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", model.name):
        raise ValueError(f"--name is {shown(model.name)}, wanted letters, digits, - and _, a letter or digit first")
    known = [tensor.name for tensor in INPUTS]
    if unknown := [name for name in model.inputs if name not in known]:
        raise ValueError(f"--inputs has {shown(unknown[0])}, wanted some of {', '.join(known)}")
    if bundle_path is not None and not Path(bundle_path).is_absolute():
        raise ValueError(f"--bundle-path is {shown(bundle_path)}, wanted an absolute path on the server")
    limits = {
        "--instances": (model.instances, 1, MAX_INSTANCES),
        "--max-batch": (model.max_batch, 1, MAX_IMAGES),
        "--threads": (model.threads, 1, 1024),
        "--queue-delay": (model.queue_delay, 0, 60_000_000),
        "--queue-limit": (model.queue_limit, 1, 1_000_000),
        "--queue-seconds": (model.queue_seconds, 0.001, 86_400),
        "--max-work": (model.max_work, _LEAST_WORK, 1e9),
        "--max-seconds": (model.max_seconds, 1, 1e6),
        "--max-memory": (model.max_memory, 0.1, 1e6),
    }
    for option, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"{option} is {value}, wanted {low} to {high}")


def _made_here(output: Path) -> bool:
    """Whether `output` is empty, or a repository made here with no other model in it."""
    if not any(output.iterdir()):
        return True
    readme = output / README
    if not readme.is_file() or not readme.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
        return False
    return all((entry / VERSION / "serving").is_dir() for entry in output.iterdir() if entry.is_dir())


def _check_space(output: Path, size: int) -> None:
    folder = output.absolute().parent
    needed = size + _SPARE_BYTES
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(f"the repository needs {needed / 1e9:.2f} GB, but {folder} has only {free / 1e9:.2f} GB left")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser(PROGRAM).parse_args(argv)
    # The prompt is what a request is about.
    args.inputs = tuple(dict.fromkeys(("prompt", *args.inputs)))
    given = {field.name: getattr(args, field.name) for field in fields(ModelConfig) if hasattr(args, field.name)}
    model = ModelConfig(**given | {"bundle": "", "stream": False})
    others = {name: getattr(args, name) for name in ("bundle_path", "stream", "overwrite", "quiet")}
    return guard(PROGRAM, lambda: generate(args.bundle, args.output, model, **others))


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())

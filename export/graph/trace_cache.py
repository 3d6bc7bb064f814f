"""Traced graphs kept in the user's cache directory: tracing takes most of a small build's time, reading none.

An entry is a graph without weights, a few hundred kilobytes at most, in a file named by the hash of everything that the
graph depends on: a graph that would be traced differently has another name. Entries appear whole or not at all, so
processes may read and write side by side. A file that is damaged is traced again and replaced; the least recently used
files make room for new ones. Nothing here can make a build fail: without a cache it traces.
"""

import hashlib
import json
import logging
import platform
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir

import export.graph
import model
from runtime.atomic_files import remove_leftovers_in, write_whole
from runtime.user_cache import cache_directory

LIMIT = 256 * 2**20
"""Bytes of all entries."""
_ROOTS = (Path(model.__file__).parent, Path(export.graph.__file__).parent)
"""Packages whose source decides what is traced."""
_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "numpy")
_SUFFIX = ".graph"
_DIGEST = hashlib.sha256().digest_size
_INITIALIZERS = "initializers"

_log = logging.getLogger(__name__)


def user_directory() -> Path | None:
    """Where the user's traced graphs are; None for a user without a home."""
    cache = cache_directory()
    return None if cache is None else cache / "graphs"


def tool_versions() -> dict[str, str]:
    """Versions of what makes a graph from a module."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def source_digest(roots: Iterable[Path]) -> str:
    """SHA-256 of the Python files below some folders, with their names; FileNotFoundError if a folder has none."""
    digest = hashlib.sha256()
    for root in roots:
        files = sorted(root.rglob("*.py"))
        if not files:
            raise FileNotFoundError(f"there is no Python source in {root}")
        for file in files:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
            digest.update(content)
        digest.update(b"\n")
    return digest.hexdigest()


def entry_key(parts: object, sources: str, versions: dict[str, str]) -> str:
    """Name of an entry: SHA-256 of the parts' text, the source's digest and the versions.

    Args:
        parts: what is traced: names, sizes and types, whose `repr` must say all of their values.
        sources: from `source_digest`.
        versions: from `tool_versions`.
    """
    text = json.dumps([repr(parts), sources, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cached(parts: object, make: Callable[[], ir.Model], directory: Path | None, limit: int = LIMIT) -> ir.Model:
    """The graph that `make` traces, from an entry if there is one; without one it is traced and kept.

    Either way the model has been through its serialized form, so an entry gives exactly what tracing gives.

    Args:
        parts: as for `entry_key`.
        make: traces the graph.
        directory: of the entries, or None to trace in any case and keep nothing.
        limit: bytes of all entries together.
    """
    file = None if directory is None else _entry_file(directory, parts)
    found = None if file is None else _read(file)
    if found is not None:
        return found
    content = encode(make())
    if file is not None:
        _write(file, content, limit)
    return decode(content)


def encode(graph: ir.Model) -> bytes:
    """A model whose parameters have no values, as bytes. They are stored as further inputs; `graph` is used up."""
    body = graph.graph
    graph.metadata_props[_INITIALIZERS] = json.dumps(list(body.initializers))
    for name, value in list(body.initializers.items()):
        if value.const_value is None:
            body.initializers.pop(name)
            body.inputs.append(value)
    return ir.to_proto(graph).SerializeToString(deterministic=True)


def decode(content: bytes) -> ir.Model:
    """The inverse of `encode`; raises what protobuf and onnx_ir like for other bytes."""
    graph = ir.from_proto(onnx.ModelProto.FromString(content))
    body = graph.graph
    names = json.loads(graph.metadata_props.pop(_INITIALIZERS))
    held = dict(body.initializers)
    body.initializers.clear()
    parameters = {value.name: value for value in body.inputs if value.name in set(names) - set(held)}
    for value in parameters.values():
        body.inputs.remove(value)
    for name in names:
        body.initializers[name] = held[name] if name in held else parameters[name]
    return graph


def _entry_file(directory: Path, parts: object) -> Path | None:
    try:
        return directory / f"{entry_key(parts, source_digest(_ROOTS), tool_versions())}{_SUFFIX}"
    except OSError as error:
        _log.debug("traced graphs are not kept: %s", error)
        return None


def _read(file: Path) -> ir.Model | None:
    """The model of an entry, which counts as used from now on; None if there is no entry or it is damaged."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            raise ValueError("its bytes do not have the hash that they were written with")
        found = decode(content[_DIGEST:])
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever protobuf and onnx_ir raise for what only looks like a graph
        _log.debug("tracing again what %s holds: %s", file, error)
        return None
    with suppress(OSError):
        file.touch()
    return found


def _write(file: Path, content: bytes, limit: int) -> None:
    """Keep an entry, and remove those that have not been used for longest until all fit into `limit` bytes."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_in(file.parent)
        write_whole(file, hashlib.sha256(content).digest() + content)
        _remove_oldest(file.parent, limit)
    except OSError as error:
        _log.debug("cannot keep the traced graph %s: %s", file, error)


def _remove_oldest(directory: Path, limit: int) -> None:
    entries = []
    for file in directory.iterdir():
        with suppress(FileNotFoundError):  # another process made room, too
            status = file.stat()
            if file.suffix == _SUFFIX:
                entries.append((status.st_mtime_ns, status.st_size, file))
    total = sum(size for _, size, _ in entries)
    for _, size, file in sorted(entries):
        if total <= limit:
            return
        file.unlink(missing_ok=True)
        total -= size

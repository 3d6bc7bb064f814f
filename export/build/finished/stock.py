"""The finished stages that a build may take: its own from before it was killed, and those of the bundle it replaces."""

import contextlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.atomic_directory import link_or_copy, why_not_linked
from export.build.finished.ledger import LEDGER, Finished, Ledger
from export.build.finished.sound import Sound, digest_of
from runtime.bundle.manifest import Manifest, read_manifest
from runtime.errors import MissingFileError


@dataclass(frozen=True)
class Found:
    """A finished stage, and where its files are."""

    finished: Finished
    folder: Path


class Stock:
    """What there is for one build."""

    def __init__(self, folder: Path, output: Path, others: Collection[str], fresh: bool, quiet: bool) -> None:
        """Read what was finished.

        Args:
            folder: the unfinished bundle.
            output: its final name, which the bundle that it replaces may have.
            others: names of files that belong to no stage and are of use to a build that goes on.
            fresh: take nothing from either.
            quiet: no progress; warnings of what is damaged are not kept back.
        """
        self.folder, self._output, self._others = folder, output.absolute(), {LEDGER, *others}
        self._sound = Sound(self._output, quiet)
        self._own = Ledger(folder) if fresh else Ledger.read(folder)
        self._manifest = None if fresh else _manifest(self._output)
        self._earlier = Ledger(self._output)
        if self._manifest is not None:
            self._earlier = Ledger.of_bundle(self._output, self._manifest)
            _warn(self._earlier.problem)

    def files(self, name: str) -> list[Path]:
        """The files of that name among `others` that are there: our own, and that of the replaced bundle if it is as
        the bundle's manifest says."""
        found = [file] if (file := self.folder / name).is_file() else []
        if self._manifest is not None and (listed := self._manifest.files.get(name)):
            if digest_of(file := self._output / name) == listed.sha256:
                found.append(file)
            else:
                _warn(f"{file} is missing or altered; nothing is taken from it")
        return found

    def find(self, keys: Mapping[str, str]) -> dict[str, Found]:
        """The finished stages, of those with these keys by name, whose files are what they were."""
        found: dict[str, Found] = {}
        for ledger in (self._own, self._earlier):
            same = {name: ledger.finished[name] for name in keys if name not in found and name in ledger.finished}
            same = {name: entry for name, entry in same.items() if entry.key == keys[name]}
            files = {path: spec for entry in same.values() for path, spec in entry.files.items()}
            altered = self._sound.altered(ledger.folder, files)
            sound = {name: entry for name, entry in same.items() if not altered & entry.files.keys()}
            found |= {name: Found(entry, ledger.folder) for name, entry in sound.items()}
        return found

    def take(self, found: Mapping[str, Found]) -> None:
        """Have finished stages in the unfinished bundle, and nothing else but `others`; OSError if that fails.

        What else a killed build has left is in the way: it takes room, and may be a second name of a file of the
        replaced bundle, which must not be written to.
        """
        own = {name: one.finished for name, one in found.items() if one.folder == self.folder}
        if own != self._own.finished:
            self._own.note(own)
        for name, one in found.items():
            if one.folder != self.folder:
                for path in one.finished.files:
                    _place(one.folder / path, self.folder / path)
            self.add(name, one.finished)
        for file in self._leftovers({path for one in found.values() for path in one.finished.files}):
            file.unlink()
        for folder in sorted((path for path in self.folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()

    def add(self, name: str, finished: Finished) -> None:
        """Note that a stage is finished; its files must be in the unfinished bundle."""
        for path, spec in finished.files.items():
            self._sound.note(path, self.folder / path, spec.sha256)
        self._own.add(name, finished)

    def remember(self) -> None:
        """Remember the hashes of all stages' files, which keep what they are known by when the bundle gets its name."""
        self._sound.remember()

    def copied_bytes(self, found: Mapping[str, Found]) -> int:
        """Bytes that taking stages takes where files of the replaced bundle can have no second names."""
        files = {
            one.folder / path for one in found.values() if one.folder != self.folder for path in one.finished.files
        }
        return sum(file.stat().st_size for file in files if why_not_linked(file, self.folder))

    def freed_bytes(self, found: Mapping[str, Found]) -> int:
        """Bytes that become free when these stages are taken."""
        kept = {path for one in found.values() if one.folder == self.folder for path in one.finished.files}
        status = [file.lstat() for file in self._leftovers(kept)]
        return sum(seen.st_size for seen in status if seen.st_nlink == 1)

    def _leftovers(self, kept: Collection[str]) -> list[Path]:
        files = (file for file in self.folder.rglob("*") if file.is_symlink() or not file.is_dir())
        return [file for file in files if file.relative_to(self.folder).as_posix() not in {*kept, *self._others}]


def _place(file: Path, name: Path) -> None:
    """A second name for a finished file, or a copy where the disk has no such thing."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.unlink(missing_ok=True)
    link_or_copy(file, name)


def _manifest(bundle: Path) -> Manifest | None:
    """The manifest of the bundle that is replaced; None if there is none, or it is damaged or of another version."""
    try:
        return read_manifest(bundle)
    except MissingFileError:
        return None
    except (OSError, ValueError) as error:
        _warn(f"nothing is taken from {bundle}: {error}")
        return None


def _warn(problem: str) -> None:
    if problem:
        print(f"warning: {problem}", file=sys.stderr)

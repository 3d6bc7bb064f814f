"""What is wrong with the shape of a tree: imports that point the wrong way, and what has grown too large.

Each check returns one line for each fault, and an empty list where there is none.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.source_tree import Module, functions, imported_names, imports


def unwanted_packages(
    modules: Mapping[str, Module], may_import: Mapping[str, Sequence[str]], tests: Sequence[str] = ()
) -> list[str]:
    """Imports of a package of the project, or of `tests`, that the importing package may not know."""
    found = []
    for module in modules.values():
        package = module.name.partition(".")[0]
        own = (package, *may_import[package])
        for name in sorted(imported_names(module, modules)):
            if name.partition(".")[0] in (*may_import, *tests) and not any(inside(name, one) for one in own):
                found.append(f"{module.file} imports {name}")
    return found


def upward_arrows(modules: Mapping[str, Module], layers: Mapping[str, Sequence[str]]) -> list[str]:
    """Imports, inside a package, of another room that does not lie below."""
    found = []
    graph = imports(modules)
    for package, rows in layers.items():
        height = {room: row for row, rooms in enumerate(rows) for room in rooms.split()}
        rooms = {name: _room(name, package, height) for name in modules if inside(name, package)}
        for name, room in rooms.items():
            others = [target for target in sorted(graph[name]) if target in rooms and rooms[target] != room]
            above = [target for target in others if height[rooms[target]] >= height[room]]
            found += [f"{modules[name].file} imports {target}, which is not below it" for target in above]
    return found


def unknown_rooms(modules: Mapping[str, Module], layers: Mapping[str, Sequence[str]]) -> list[str]:
    """Rooms in `layers` that are not in the tree, and packages with subfolders that `layers` leaves out."""
    listed = {package: [room for row in rows for room in row.split()] for package, rows in layers.items()}
    wanted = {
        f"{package}.{room}".removesuffix(".__init__"): room for package, rooms in listed.items() for room in rooms
    }
    folders = {module.folder for module in modules.values()}
    unlisted = sorted({folder.partition("/")[0] for folder in folders if "/" in folder} - layers.keys())
    return sorted(f"there is no {name}" for name in wanted if name not in modules) + [
        f"{package} has no layers" for package in unlisted
    ]


def crowded_folders(modules: Mapping[str, Module], most: int) -> list[str]:
    """Folders with more Python files than `most`."""
    counts = Counter(module.folder for module in modules.values())
    return [f"{folder} has {count} files" for folder, count in sorted(counts.items()) if count > most]


def long_files(modules: Mapping[str, Module], most: int) -> list[str]:
    """Files with more lines than `most`."""
    return [f"{one.file} has {one.lines} lines" for one in modules.values() if one.lines > most]


def long_functions(modules: Mapping[str, Module], most: int, allowed: Mapping[str, str]) -> list[str]:
    """Functions of more lines than `most` that are not `allowed`, and those allowed that need it no more."""
    lengths = {f"{one.file}:{name}": length for one in modules.values() for name, length in functions(one)}
    long = {name for name, length in lengths.items() if length > most}
    return [f"{name} has {lengths[name]} lines" for name in sorted(long - allowed.keys())] + [
        f"{name} is not long" for name in sorted(allowed.keys() - long)
    ]


def bare_ignores(root: Path, packages: Sequence[str]) -> list[str]:
    """Lines that the type checker is told to ignore without a reason behind it in the same line."""
    found = []
    for file in sorted(path for package in packages for path in (root / package).rglob("*.py")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            ignored = re.search(r"#\s*type:\s*ignore(\[[\w, -]+\])?(.*)", line)
            if ignored and not re.match(r"\s*#\s*\w", ignored[2]):
                found.append(f"{file.relative_to(root).as_posix()}:{number}: {line.strip()}")
    return found


def inside(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def _room(name: str, package: str, rooms: Mapping[str, int]) -> str:
    """The longest of `rooms` that a module is in; ValueError if it is in none."""
    inner = name.removeprefix(package).removeprefix(".") or "__init__"
    fits = [room for room in rooms if inside(inner, room)]
    if not fits:
        raise ValueError(f"{name} is in no layer of {package}")
    return max(fits, key=len)

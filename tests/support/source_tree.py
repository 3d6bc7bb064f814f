"""The project's Python files and who imports whom, read as text: nothing is imported, so nothing need be installed."""

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


@dataclass(frozen=True)
class Module:
    """One file of a package."""

    name: str
    """Dotted; a folder's ``__init__.py`` has the folder's name."""
    file: str
    """Relative to the root, with slashes."""
    lines: int
    """Lines of the file."""
    tree: ast.Module
    """The parsed file."""

    @property
    def folder(self) -> str:
        """The folder that holds the file, with slashes."""
        return self.file.rpartition("/")[0]

    @property
    def package(self) -> str:
        """The name that relative imports start from."""
        return self.folder.replace("/", ".")


def read_modules(root: Path, packages: Sequence[str]) -> dict[str, Module]:
    """The modules of these folders of `root` by name, in every subfolder; FileNotFoundError if a folder has none."""
    found = {}
    for package in packages:
        files = sorted((root / package).rglob("*.py"))
        if not files:
            raise FileNotFoundError(f"{root / package} holds no Python file")
        for path in files:
            file = path.relative_to(root).as_posix()
            name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            text = path.read_text(encoding="utf-8")
            found[name] = Module(name, file, text.count("\n"), ast.parse(text, file))
    return found


def plant(root: Path, files: Mapping[str, str]) -> dict[str, Module]:
    """Write these texts below `root`, and read the modules back."""
    for file, text in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read_modules(root, sorted({file.partition("/")[0] for file in files}))


def imported_names(module: Module, known: Collection[str] = ()) -> set[str]:
    """Every dotted name that a module imports: at its top, in functions, for type checkers only, or by a string.

    ``from a import b`` means ``a.b`` if that is one of the modules `known`, otherwise ``a``.
    """
    names = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = module.package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {full if (full := f"{base}.{alias.name}") in known else base for alias in node.names}
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            values = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
            names |= {value for value in values if isinstance(value, str) and value.replace(".", "").isidentifier()}
    return names


def imports(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """For each module, those of `modules` that it imports."""
    return {name: (imported_names(module, modules) & modules.keys()) - {name} for name, module in modules.items()}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of a graph, its first member again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def folder_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Which folder imports from which; a folder and its own subfolders count as one."""
    graph: dict[str, set[str]] = {module.folder: set() for module in modules.values()}
    for name, targets in imports(modules).items():
        here = modules[name].folder
        for there in {modules[target].folder for target in targets} - {here}:
            if not f"{here}/".startswith(f"{there}/") and not f"{there}/".startswith(f"{here}/"):
                graph[here].add(there)
    return graph


def functions(module: Module) -> Iterator[tuple[str, int]]:
    """Qualified name and length of every function: the lines from ``def`` to its last, without its docstring."""

    def visit(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            name = f"{prefix}.{child.name}".lstrip(".") if named else prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                text = child.body[0] if ast.get_docstring(child) is not None else None
                length = child.end_lineno - child.lineno + 1
                yield name, length - (text.end_lineno - text.lineno + 1 if text else 0)
            yield from visit(child, name)

    return visit(module.tree, "")


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))

"""Figures of the house itself: its vocabulary and its seams, counted on the files.

python tests/house.py [FOLDER]      (the package hftl by default, or any other)
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def modules(package: Path) -> dict[Path, ast.Module]:
    """Every Python file of a package, parsed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))}


def homes(package: Path) -> dict[str, list[str]]:
    """Where each class and function of a module's top level is defined, private ones included."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules(package).items():
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, *FUNCTION.__args__)):
                found[node.name].append(path.relative_to(package).as_posix())
    return dict(found)


def functions(package: Path) -> Iterator[tuple[str, FUNCTION]]:
    """Every function and method, with the place where it is defined."""
    for path, tree in modules(package).items():
        for node in ast.walk(tree):
            if isinstance(node, FUNCTION):
                yield f"{path.relative_to(package).as_posix()}:{node.lineno} {node.name}", node


def positional(node: FUNCTION) -> int:
    """How many parameters may be given by position."""
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
    return len([name for name in names if name not in ("self", "cls")])


def comments(package: Path) -> tuple[int, int]:
    """Lines that are nothing but a comment, and lines of code, docstrings left out."""
    alone = code = 0
    for path in package.rglob("*.py"):
        lines = [line.strip() for line in without_docstrings(path.read_text(encoding="utf-8"))]
        alone += sum(line.startswith("#") for line in lines)
        code += sum(bool(line) and not line.startswith("#") for line in lines)
    return alone, code


def without_docstrings(text: str) -> list[str]:
    """A module's lines, those of its docstrings blank."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTION.__args__)) and ast.get_docstring(node, clean=False):
            first = node.body[0]
            for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[number] = ""
    return lines


def upward_imports() -> list[str]:
    """Imports of hftl that run against its floors, those for type checkers only included."""
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    floors = {
        f"hftl.{room.strip()}": height
        for height, layer in enumerate(reversed(contracts[0]["layers"]))
        for room in layer.split("|")
    }
    graph = grimp.build_graph("hftl", exclude_type_checking_imports=False, cache_dir=None)

    def floor(module: str) -> int | None:
        return floors.get(".".join(module.split(".")[:2]))

    upward = []
    for importer in graph.modules:
        for imported in graph.find_modules_directly_imported_by(importer):
            low, high = floor(importer), floor(imported)
            if low is not None and high is not None and low < high:
                upward.append(f"{importer} -> {imported}")
    return sorted(upward)


def main() -> None:
    """Print the figures."""
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "hftl"
    named = homes(package)
    twice = {name: where for name, where in named.items() if len(where) > 1}
    every = [node for _, node in functions(package)]
    wide = [node for node in every if positional(node) + len(node.args.kwonlyargs) >= 7]
    alone, code = comments(package)
    print(f"names defined in two or more modules   {100 * len(twice) / len(named):.1f} % ({len(twice)})")
    for name, where in sorted(twice.items()):
        print(f"    {name}: {', '.join(where)}")
    print(f"comment lines per 100 lines of code    {100 * alone / code:.1f}")
    print(f"functions with seven or more parameters {100 * len(wide) / len(every):.1f} %")
    print(f"functions with more than six positional {sum(positional(node) > 6 for node in every)}")
    if package.name == "hftl" and len(sys.argv) == 1:
        print(f"imports against the floors             {len(upward_imports())}: {', '.join(upward_imports())}")


if __name__ == "__main__":
    main()

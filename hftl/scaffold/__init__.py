"""What ``hftl new`` writes: files made of the templates beside this module."""

from __future__ import annotations

import re
from pathlib import Path

from hftl import __version__
from hftl.errors import UserError

# What an index of packages and Python both take for a name.
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, into: Path) -> Path:
    """Write an installable package with one backbone, its test and a README.

    Args:
        name: the backbone's name, such as ``my-vit``; the package is called ``hftl-my-vit``.
        into: the folder in which the package's folder is made.

    Returns:
        The package's folder.

    Raises:
        UserError: the name cannot be one of a package, or the folder is there already.
    """
    short = checked(name).removeprefix("hftl-")
    module = f"hftl_{short.replace('-', '_')}"
    target = into / f"hftl-{short}"
    files = {
        "pyproject.toml": target / "pyproject.toml",
        "README.md": target / "README.md",
        "module.py": target / module / "__init__.py",
        "test.py": target / "tests" / f"test_{module.removeprefix('hftl_')}.py",
    }
    _write("plugin", files, [target], {"name": short, "module": module})
    return target


def new_recipe(name: str, into: Path) -> Path:
    """Write a recipe file and its test.

    Args:
        name: the recipe's name, such as ``my-flowers``; the file is called ``my_flowers.py``.
        into: the folder to write to.

    Returns:
        The recipe's file.

    Raises:
        UserError: the name cannot be one of a module, or a file is there already.
    """
    module = checked(name).replace("-", "_")
    files = {"recipe.py": into / f"{module}.py", "test.py": into / f"test_{module}.py"}
    _write("recipe", files, list(files.values()), {"name": name, "module": module})
    return files["recipe.py"]


def checked(name: str) -> str:
    """The name, if it can be one of a package.

    Raises:
        UserError: it cannot.
    """
    if NAME.fullmatch(name):
        return name
    tidied = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")
    hint = f", such as {tidied}" if NAME.fullmatch(tidied) else ""
    raise UserError(f"{name!r} is no name for a package: use small letters, digits and single dashes{hint}")


def _write(kind: str, files: dict[str, Path], new: list[Path], values: dict[str, str]) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    for path in new:
        if path.exists():
            raise UserError(f"{path} is there already; choose another name, or move it away")
    loader = FileSystemLoader(Path(__file__).parent / kind)
    # These are Python and TOML, where escaping as in HTML would be wrong.
    templates = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    for template, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = templates.get_template(f"{template}.jinja").render(version=__version__, **values)
        path.write_text(made, encoding="utf-8")

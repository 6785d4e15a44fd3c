"""Every block of docs/plugins.md is run, in order, in one folder: files are written, commands give what is shown."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_plugins import Site

from hftl import samples
from hftl.plugins import hookspecs

PAGE = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
PARTS = re.compile(r"^```(\w+)\n(.*?)^```$|^<!-- installed: (\S+) -->$", re.DOTALL | re.MULTILINE)
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("hftl_"))

SHIMS = {
    "hftl": 'exec {python} -m hftl "$@"',
    "pytest": 'exec {python} -m pytest -q -p no:cacheprovider "$@"',
    # Into a folder of the test's own, and without an index.
    "pip": 'exec {python} -m pip install -q --no-deps --no-index --no-build-isolation --target {site} "./$3"',
}


@dataclass
class Reader:
    """Somebody who types in the whole page."""

    site: Site
    files: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.site.folder / "bin"), os.environ["PATH"]])
        return self.site.environment(PATH=path)

    def write(self, block: str) -> None:
        """A block of Python: the first line names the file, later blocks of one file add to it."""
        name = block.splitlines()[0].removeprefix("# ")
        assert name.endswith(".py"), name
        begun = name in self.files
        self.files[name] = f"{self.files[name]}\n\n{block}" if begun else block
        path = self.site.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.files[name], encoding="utf-8")

    def type_in(self, block: str) -> None:
        """A block of commands, each with lines that its output holds."""
        for command, shown in commands(block):
            done = subprocess.run(
                ["sh", "-c", f"{command} 2>&1"],
                cwd=self.site.folder,
                env=self.environment(),
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, f"$ {command}\n{done.stdout}"
            if command.startswith("pip install"):
                self.site.names.append("my-vit")
            for line in shown:
                wanted = ".*".join(re.escape(part.strip()) for part in line.split("…"))
                assert re.search(wanted, done.stdout), f"$ {command}\nno line like: {line}\n{done.stdout}"


def commands(block: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif line:
            found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = tmp_path_factory.mktemp("page")
    (folder / "bin").mkdir()
    for name, code in SHIMS.items():
        shim = folder / "bin" / name
        shim.write_text(f"#!/bin/sh\n{code.format(python=sys.executable, site=folder)}\n")
        shim.chmod(0o755)
    three = next(row for row in samples.DATASETS["digits"]()["test"] if str(row.label) == "3")
    (folder / "digit.png").write_bytes(three.encoded)
    return Reader(Site(folder))


def test_every_block_does_what_the_page_says(reader: Reader) -> None:
    ran = 0
    for kind, block, installed in PARTS.findall(PAGE):
        if installed:
            reader.site.install(installed, reader.files[f"{installed}.py"])
        elif kind == "python":
            reader.write(block)
        elif kind == "console":
            reader.type_in(block)
        else:
            assert kind == "text", f"a block of {kind!r} is not run"
        ran += 1
    assert ran == PAGE.count("\n```") // 2 + PAGE.count("<!-- installed")


def test_the_page_shows_what_is_scaffolded(reader: Reader) -> None:
    # The tutorial's test file is the scaffold's, but for comments.
    scaffolded = (Path(hookspecs.__file__).parents[1] / "scaffold" / "plugin" / "test.py.jinja").read_text()
    assert 'check_backbone("{{ name }}")' in scaffolded
    assert 'check_backbone("my-vit")' in PAGE


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_documented(hook: str) -> None:
    found = re.search(rf"^### {hook}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/plugins.md has no section on {hook}"
    section = found.group(1)
    specification = getattr(hookspecs, hook)
    signature = f"{hook}{inspect.signature(specification)}".replace("'", "")
    assert re.search(r"```text\n(.*?)\n```", section).group(1) == signature
    doc = inspect.getdoc(specification) or ""
    version = re.search(r"Since (\d+\.\d+)\.", doc)
    assert version, f"{hook}: its docstring does not say since when"
    assert f"Since {version.group(1)}." in section
    assert "Called" in section
    assert "Called" in doc
    # Its example, which the test above runs.
    assert f"@hftl.hookimpl\ndef {hook}(" in section

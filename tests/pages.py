"""The README and the pages under docs/, as a reader takes them: every block is typed in, in order, in one folder.

What a page may hold, and what is done with it:

``console``         commands, run by a shell; where lines begin with ``$``, the others are what the output holds, ``…``
                    for anything
``python``          run in one session for the page; where the first line is a file's name, written to that file
with a ``title``    a file: written, or, where it is there, compared with the file's first lines
``text``, ``json``  shown
<!-- given: COMMAND -->         run, unseen by the reader: what the page takes for granted
<!-- installed: MODULE -->      the file MODULE.py becomes an installed plugin
<!-- not run: REASON -->        the next block is not run; the test knows the reasons that count
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from fake_plugins import Site
from warm import Warm

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

PART = re.compile(
    r"^```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$|^<!-- (?P<comment>.*?) -->$", re.M | re.S
)
FILE_NAMED_FIRST = re.compile(r"# (\S+\.py)\n")
SHOWN_ONLY = ("text", "json")
WHY_NOT_RUN = {
    "it installs packages": "the tests have them, and no network",
    "it takes several machines": "the tests have one",
    "it starts several processes": "the tests of fine-tuning do, and each imports torch anew",
    "it takes a GPU": "the tests may have none",
    "it is a part of the tests": "they run it with what it leaves out",
    "it changes the machine": "folders and groups that a test has no right to",
}
# The README's own markers, which other programs look for.
MAIN_JOB, TESTS = "main job", "tests"
LONGEST_SECONDS = 300


@dataclass(frozen=True)
class Block:
    """A block of a page, or a comment that says something about it.

    Attributes:
        page: the page's name.
        line: where the block begins, counted from 1.
        kind: the language, or the comment's first word.
        text: what it holds.
        title: the file that it is; empty for none.
        not_run: why it is not run; empty where it is.
    """

    page: str
    line: int
    kind: str
    text: str
    title: str = ""
    not_run: str = ""

    @property
    def is_run(self) -> bool:
        """Whether a reader types it in."""
        return self.not_run in ("", MAIN_JOB) and (self.kind not in SHOWN_ONLY or bool(self.title))


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, in order."""
    page = path.read_text(encoding="utf-8")
    found: list[Block] = []
    why = ""
    for part in PART.finditer(page):
        line = page.count("\n", 0, part.start()) + 1
        if part["comment"] is None:
            found.append(Block(path.name, line, part["kind"], part["text"], part["title"] or "", why))
            why = ""
            continue
        kind, _, rest = part["comment"].partition(": ")
        if kind in ("given", "installed"):
            found.append(Block(path.name, line, kind, rest))
        elif kind in (MAIN_JOB, TESTS):
            why = kind
        elif kind == "not run":
            why = rest
    return found


def commands(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that its output is to hold."""
    lines = block.replace("\\\n", " ").splitlines()
    if not any(line.startswith("$ ") for line in lines):
        return [(line, []) for line in lines if line and not line.startswith("#")]
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif line:
            found[-1][1].append(line)
    return found


@dataclass
class Reader:
    """Somebody who types in a whole page.

    Attributes:
        warm: runs the commands.
        site: where plugins are installed; its folder is the reader's.
    """

    warm: Warm
    site: Site
    files: dict[str, str] = field(default_factory=dict)
    _session: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> None:
        """Type in all of a page."""
        try:
            for block in blocks(path):
                try:
                    if block.is_run:
                        self._take(block)
                except AssertionError as error:
                    raise AssertionError(f"{block.page}, line {block.line}: {error}") from error
        finally:
            if self._session is not None:
                self._session.communicate()

    def _take(self, block: Block) -> None:
        if block.not_run == MAIN_JOB:
            self._type_in(block.text.rpartition("&& ")[2].replace(".venv/bin/", ""))
        elif block.kind == "installed":
            self.site.install(block.text, self.files[f"{block.text}.py"])
        elif block.kind == "given":
            self._type_in(block.text)
        elif block.title:
            self._put(block.title, block.text)
        elif block.kind == "python" and (named := FILE_NAMED_FIRST.match(block.text)):
            self._write(named[1], block.text)
        elif block.kind == "python":
            self._execute(block.text)
        else:
            assert block.kind == "console", f"nobody knows what to do with a block of {block.kind!r}"
            self._type_in(block.text)

    def _environment(self) -> dict[str, str]:
        known = self.warm.environment
        return known | {"PYTHONPATH": os.pathsep.join([str(self.site.folder), known["PYTHONPATH"]]), "COLUMNS": "200"}

    def _type_in(self, block: str) -> None:
        for command, shown in commands(block):
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=self.site.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=LONGEST_SECONDS,
            )
            # Where an error is shown, the command may be one that is refused.
            good = (0, 2) if any(line.startswith("hftl: ") for line in shown) else (0,)
            assert done.returncode in good, f"$ {command}\nended with {done.returncode}\n{done.stdout}"
            for line in shown:
                wanted = ".*".join(re.escape(part.strip()) for part in line.split("…"))
                assert re.search(wanted, done.stdout), f"$ {command}\nno line like: {line}\n{done.stdout}"

    def _put(self, title: str, text: str) -> None:
        """Write a file that a page shows; where it is there, see that it begins as the page says."""
        path = self.site.folder / title
        if path.exists():
            there = path.read_text(encoding="utf-8")
            assert there.startswith(text.removesuffix("…\n")), f"{title} begins otherwise:\n{there[:500]}"
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def _write(self, name: str, block: str) -> None:
        """Later blocks of one file add to it."""
        self.files[name] = f"{self.files[name]}\n\n{block}" if name in self.files else block
        path = self.site.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.files[name], encoding="utf-8")

    def _execute(self, source: str) -> None:
        if self._session is None:
            self._session = subprocess.Popen(
                [self.warm.programs / "python-session"],
                cwd=self.site.folder,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._session.stdin is not None
        assert self._session.stdout is not None
        self._session.stdin.write(f"{source!r}\n")
        self._session.stdin.flush()
        said = self._session.stdout.readline()
        assert said == "done\n", f"{source}\n{said.encode().decode('unicode_escape')}"

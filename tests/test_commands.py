"""Every command answers --json with JSON alone and keeps quiet; what other people wrote stays inert in both."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import typer
from runs import Cli
from test_card import HOSTILE

from hftl.cli import build_app

# More that a terminal, a table or a spreadsheet could take for something else.
NAMES = [
    *HOSTILE,
    "\r\x1b[1A\x1b[2Kgone",
    "=cmd|' /C calc'!A0",
    "\u2028line\u2029separators",
    "\U000e0001tags\U000e007f",
    "{rich} [link=https://evil.example]x[/link] [/]",
    '"quoted", comma; semicolon|bar',
]


def commands() -> Iterator[tuple[str, Any]]:
    """Each command of hftl, by what is typed to call it."""
    group = typer.main.get_group(build_app())
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {each}", sub) for each, sub in inner.items()) if inner else [(name, command)]


def test_every_command_has_json_and_quiet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HFTL_PLUGINS", "")
    for name, command in commands():
        flags = {opt for parameter in command.params for opt in parameter.opts}
        # `predict` prints nothing but its answer.
        assert "--json" in flags, f"hftl {name} has no --json: see hftl.cli.questions.AsJson"
        assert "--quiet" in flags or name == "predict", f"hftl {name} has no --quiet: see hftl.cli.questions.Quiet"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, and texts whose labels would like to be obeyed: six of each, in a file named so too."""
    folder = tmp_path_factory.mktemp("hostile")
    tiny.save("bert", folder / "bert")
    with (folder / "data\x1b[31m.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number, label in enumerate(NAMES):
            writer.writerows([f"the cat {'sat ' * (number % 5)}under tree {k}", label] for k in range(6))
    return folder


def inert(text: str) -> None:
    assert [c for c in text if not (c.isprintable() or c in "\n")] == []


@pytest.fixture
def here(hostile: Path, tmp_path: Path, cli: Cli) -> list[str | Path]:
    """Flags that say what to do with the hostile data, in the test's own folder."""
    shutil.copytree(hostile, tmp_path, dirs_exist_ok=True)
    return ["--backbone", "./bert", "--data", "data\x1b[31m.csv", "--label-columns", "label", "--task", "single_label"]


def answer(cli: Cli, *arguments: str | Path) -> Any:
    """What a command answers: JSON alone on standard output, and nothing that a terminal would obey anywhere."""
    read = json.loads(cli.ok(*arguments, "--json"))
    inert(cli.out)
    inert(cli.err)
    return read


def test_a_run_is_one_object_and_all_else_is_on_standard_error(cli: Cli, here: list[str | Path]):
    done = answer(cli, "run", *here, "--out", "run", "--folds", 2)
    assert done["folder"] == "run"
    assert done["metrics"] == json.loads(Path("run/metrics.json").read_text())
    assert len(done["metrics"]["eval"]["per_class"]) == len(NAMES) == 30
    assert all(line.split()[0] in ("below", "start", "epochs") for line in done["said"])
    assert "backbone  ./bert" in cli.err or "backbone  bert" in cli.err
    assert cli.ok("run", *here, "--out", "again", "--folds", 2, "--quiet") == ""
    assert cli.err == ""
    # The same for people.
    cli.ok("run", *here, "--out", "third", "--folds", 2)
    inert(cli.out + cli.err)

    assert "accuracy" in answer(cli, "evaluate", "run", "--data", "data\x1b[31m.csv")
    cli.ok("evaluate", "run", "--data", "data\x1b[31m.csv", "--quiet")
    assert cli.err == ""
    inert(cli.out)
    files = answer(cli, "push", "run", "me/x", "--dry-run")["files"]
    assert "model.safetensors" in [file["file"] for file in files]
    assert answer(cli, "new", "recipe", "mine", "--from", "run")["files"] == ["mine.py"]
    assert [row["recipe"] for row in answer(cli, "recipes")][-1] == "mine.py"
    inert(cli.ok("recipes"))


def test_features_and_the_cache_answer_in_json(cli: Cli, here: list[str | Path]):
    made = answer(cli, "features", *here, "--export", "x.npy")
    assert made["rows"] == 6 * len(NAMES)
    assert made["files"] == ["x.npy", "x.json"]
    assert sum(made["splits"].values()) == made["rows"]
    assert cli.ok("features", *here, "--quiet") == ""
    assert cli.err == ""
    # Copies of a text are kept once.
    assert answer(cli, "cache", "ls")[0]["rows"] == 30
    assert answer(cli, "cache", "stats")[0]["spaces"] == 1
    assert answer(cli, "cache", "compact") == {"merged": 0}
    assert answer(cli, "cache", "verify")[0]["damaged"] is None
    assert cli.ok("cache", "compact", "--quiet") == ""
    assert answer(cli, "cache", "gc", "1G") == []
    assert len(answer(cli, "cache", "clear", "--all", "--force", "--yes")) == 1


@pytest.mark.parametrize("question", ["audit", "rank", "layers"])
def test_the_scout_answers_in_json(cli: Cli, here: list[str | Path], question: str):
    flags = ["--backbones", "./bert"] if question == "rank" else []
    found = answer(cli, question, *here, *flags)
    assert isinstance(found, dict)
    assert "advice" in found
    cli.ok(question, *here, *flags)
    inert(cli.out + cli.err)
    # Its commands say what was asked, though no recipe was named.
    lines = [line for line in cli.out.splitlines() if line.startswith("hftl run")]
    assert all("--data" in line and "--label-columns label" in line for line in lines)
    assert bool(lines) == (question in ("rank", "layers"))


def test_lists_and_scaffolds_answer_in_json(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    for command in ("backbones", "recipes", "plugins", "doctor"):
        assert isinstance(answer(cli, command), list)
        assert cli.ok(command, "--quiet")
        assert cli.err == ""
    assert answer(cli, "new", "recipe", "one")["files"] == ["one.py", "test_one.py"]
    assert "hftl-two/pyproject.toml" in answer(cli, "new", "plugin", "two")["files"]
    assert cli.ok("new", "recipe", "three", "--quiet") == ""


def test_bad_rows_are_named_where_no_file_lists_them(cli: Cli, tmp_path: Path):
    tiny.save("vit", tmp_path / "vit")
    data = runs.write_images(tmp_path / "data")
    (data / "class1" / "broken\x1b[2J.png").write_bytes(b"no picture")
    line = ["--backbone", "./vit", "--data", "data", "--on-bad-row", "skip"]
    cli.ok("features", *line)
    assert "1 row could not be decoded and were left out; class1/broken\ufffd[2J.png: " in cli.out
    assert "skipped.json" not in cli.out
    cli.ok("run", *line, "--out", "run", "--folds", 2)
    assert "skipped.json lists them" in cli.out
    assert [row["row"] for row in json.loads(Path("run/skipped.json").read_text())]

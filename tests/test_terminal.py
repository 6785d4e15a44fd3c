"""Nothing that other people wrote commands the terminal, wherever it is printed; messages are cut where words end."""

from __future__ import annotations

import ast
import io
import shutil
from pathlib import Path

import house
import pytest
import runs
import tiny
from runs import Cli

from hftl.progress import Progress
from hftl.terminal import Terminal
from hftl.wording import one_line, plain, shortened

RED = "\x1b[31mred\x1b]0;title\x07\u202e[bold]x"
RECIPE = """
from hftl import Head, Recipe, recipe

@recipe
def r() -> Recipe:
    return Recipe(backbone="./vit", data="pictures", method=Head(folds=2))
"""


def unprintable(text: str) -> list[str]:
    return [c for c in text if not (c.isprintable() or c == "\n")]


@pytest.mark.parametrize("command", ["run", "wrong", "predict", "evaluate", "push", "features", "report of a bad row"])
def test_names_of_folders_and_files_are_shown_and_do_nothing(cli: Cli, tmp_path: Path, command: str):
    tiny.save("vit", tmp_path / f"{RED}vit")
    data, out = runs.write_images(tmp_path / f"{RED}data"), tmp_path / f"{RED}out"
    shutil.move(data / "class0", data / f"class{RED}")
    (tmp_path / "r.py").write_text(RECIPE)
    line = ["r.py", "--backbone", tmp_path / f"{RED}vit", "--data", data]
    if command in ("predict", "evaluate", "push"):
        cli.ok("run", *line, "--out", out)
    if command == "report of a bad row":
        (data / "class1" / f"{RED}.png").write_bytes(b"no picture")
    commands: dict[str, list[str | Path]] = {
        "run": ["run", *line, "--out", out],
        "wrong": ["run", *line[:-1], tmp_path / RED],
        "predict": ["predict", out, data],
        "evaluate": ["evaluate", out, "--data", data],
        "push": ["push", out, "me/x", "--dry-run"],
        "features": ["features", *line, "--export", tmp_path / f"{RED}.npy"],
        "report of a bad row": ["run", *line, "--out", out],
    }
    status = cli(*commands[command])
    assert status == (2 if command in ("wrong", "report of a bad row") else 0), cli.err
    assert unprintable(cli.out + cli.err) == []
    if command not in ("push", "evaluate"):
        # What can be shown of a name is shown, markup included.
        assert "\ufffd[31mred" in cli.out + cli.err
        assert "[bold]x" in cli.out + cli.err


def test_every_way_to_print_lets_nothing_through():
    stream = io.StringIO()
    terminal = Terminal(file=stream)
    terminal.print(f"  note  {RED}", markup=True)
    with Progress("rows", 3, stream=stream) as progress:
        progress.say(RED)
        progress.advance(3)
    assert unprintable(stream.getvalue()) == []
    assert stream.getvalue().startswith("  note  \ufffd[31mred")
    assert "[bold]x" in stream.getvalue()


def test_long_lines_are_never_folded():
    stream = io.StringIO()
    Terminal(file=stream).print("word " * 100)
    assert stream.getvalue().count("\n") == 1


def test_prints_stand_only_where_text_is_made_plain():
    """A new print elsewhere would be a new way to the terminal."""
    allowed = {"terminal.py", "progress.py", "cli/__init__.py", "cli/output.py", "plugins/manager.py"}
    # These print JSON, in which what cannot be printed is escaped, a number, or what a developer's own test says.
    allowed |= {"cli/evaluate.py", "cli/predict.py", "cli/cache.py", "testing/__init__.py"}
    printing = {
        path.relative_to(house.ROOT / "hftl").as_posix()
        for path, tree in house.modules(house.ROOT / "hftl").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert printing <= allowed


def test_messages_are_cut_where_a_word_ends_and_say_so():
    text = "one two three four five"
    assert shortened(text, len(text)) == text
    assert shortened(text, 15) == "one two three…"
    assert shortened(text, 13) == "one two…"
    assert shortened("x" * 50, 10) == "x" * 9 + "…"
    for longest in range(5, 30):
        assert len(shortened(text, longest)) <= longest
    assert one_line("word " * 200).endswith("word…")
    assert len(one_line("word " * 200)) <= 300
    assert one_line("") == "str"
    assert plain("a\tb") == "a\ufffdb"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (
            "Error no file named model.safetensors. For details look at the above report!",
            "Error no file named model.safetensors.",
        ),
        (
            "You set `ignore_mismatched_sizes` to `False`, thus raising an error. For details see the above report!",
            "some weights have another shape than config.json says",
        ),
        (
            "403 Forbidden for url 'https://storage.example/x/abc?X-Amz-Signature=secret&Expires=1' at once",
            "403 Forbidden for url 'https://storage.example/x/abc' at once",
        ),
        (
            "500 for url: https://cdn.example/a?token=secret\nFor more information check: https://developer.example/500",
            "500 for url: https://cdn.example/a",
        ),
    ],
)
def test_what_leads_nowhere_and_what_is_secret_is_left_out(message: str, shown: str):
    assert one_line(ValueError(message)) == shown

"""Every block of docs/predict.md is run."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import runs
import tiny
from PIL import Image
from runs import Cli
from sklearn.datasets import load_digits

import hftl

PAGE = (Path(__file__).parent.parent / "docs" / "predict.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs and what the page predicts."""
    folder = tmp_path_factory.mktemp("office")
    hftl.run(hftl.Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits"), out=folder / "runs" / "digits")
    for digit in (3, 7):
        (folder / "photos" / str(digit)).mkdir(parents=True)
        pixels = next(image for image, label in zip(*load_digits(return_X_y=True), strict=True) if label == digit)
        Image.fromarray((pixels.reshape(8, 8) * 15.9).astype("uint8")).resize((64, 64)).save(
            folder / "photos" / str(digit) / "one.png"
        )
    (folder / "photos.csv").write_text("photo\nphotos/3/one.png\nphotos/7/one.png\n")
    lines = runs.write_texts(folder / "texts.csv", 120).read_text().splitlines()[1:]
    rows = [line.rsplit(",", 1) for line in lines]
    with (folder / "tickets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "ticket", "label"], *([i, *row] for i, row in enumerate(rows))])
    (folder / "lines.txt").write_text("".join(f"{text}\n" for text, _ in rows[:20]))
    (folder / "tickets.jsonl").write_text("".join(json.dumps({"ticket": text}) + "\n" for text, _ in rows[:20]))
    recipe = hftl.Recipe(
        backbone=str(tiny.save("bert", folder / "bert")), data=str(folder / "tickets.csv"), input_columns=("ticket",)
    )
    hftl.run(recipe, out=folder / "runs" / "tickets")
    return folder


def test_every_command_runs(cli: Cli, office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(office)
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        words = shlex.split(command)
        if "<" in words:
            at = words.index("<")
            content = Path(words[at + 1]).read_bytes()
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
            words = words[:at]
        said = cli.ok(*words[1:])
        assert said or "--out" in words, command
    assert [line.split(",")[1] for line in Path("scored.csv").read_text().splitlines()][:3] == ["id", "0", "1"]
    printed = cli.ok("predict", "runs/digits", "photos", "--json")
    assert [json.loads(line)["label"] for line in printed.splitlines()] == ["3", "7"]


def test_the_python_runs(office: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(office)
    (shown,) = blocks("python")
    exec(shown, {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 2 + 20 + 1
    assert float(printed[-1]) > 0.5

"""The six questions, asked of data that are odd in some way: each is answered rightly, or refused in one line."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
from runs import Cli

WORDS = ["cat", "dog", "bird", "tree", "rug", "hill"]
COMMANDS = ["rank", "layers", "transfer", "curve", "audit", "advise"]
# What each command says; a command that is not named answers.
REFUSED = {
    "one class": dict.fromkeys(COMMANDS, "training has a single class, 'only'"),
    "2 rows a class": {"curve": "10 rows are left to train on when a fifth is held out"},
    "500 classes": {"curve": "a learning curve begins at 1,000 (2 of each class)"},
    "regression": {},
    "several labels": {},
}
FLAGS = {
    "regression": ["--task", "regression"],
    "several labels": ["--task", "multi_label", "--label-columns", "label"],
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("bert", tmp_path_factory.mktemp("models") / "bert")


def write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def rows_of(kind: str) -> list[tuple[str, object]]:
    draw = random.Random(0)
    several = [draw.sample(WORDS[:3], draw.choice([1, 2])) for _ in range(60)]
    singles = [draw.choice(WORDS[:3]) for _ in range(60)]
    made: dict[str, list[tuple[str, object]]] = {
        "one class": [(f"the {word} sat under {i} trees", "only") for i, word in enumerate(singles)],
        "2 rows a class": [(f"the {word} sat {i} times", f"class {word}") for word in WORDS for i in range(2)],
        "500 classes": [(f"the {WORDS[k % 6]} sat on {k} mat {i}", f"class {k}") for k in range(500) for i in range(2)],
        "regression": [(f"the {word} sat on {i}", WORDS.index(word) + i % 7 / 10) for i, word in enumerate(singles)],
        "several labels": [(f"the {' '.join(each)} sat on {i}", "|".join(each)) for i, each in enumerate(several)],
    }
    return made[kind]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", REFUSED)
def test_odd_data_are_answered_or_refused_in_one_line(
    cli: Cli, bert: Path, tmp_path: Path, kind: str, command: str
) -> None:
    if (kind, command) in {("500 classes", "transfer"), ("500 classes", "advise")} and not os.environ.get("HFTL_LONG"):
        pytest.skip("500 support vector machines for each of five folds: HFTL_LONG=1")
    rows = rows_of(kind)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.csv", rows)
    write(tmp_path / "data" / "test.csv", [("the tree ran over a hill", rows[0][1]), ("a rug", rows[-1][1])])
    recipe = tmp_path / "odd.py"
    recipe.write_text(
        "from hftl import Head, Recipe, recipe\n\n@recipe\ndef odd() -> Recipe:\n"
        f"    return Recipe(backbone={str(bert)!r}, data={str(tmp_path / 'data')!r}, method=Head())\n"
    )
    own = {"rank": ["--backbones", bert], "transfer": ["--seeds", "1"], "advise": ["--minutes", "0.1"]}
    asked = [command, recipe, *own.get(command, []), *FLAGS.get(kind, [])]
    if (why := REFUSED[kind].get(command)) is not None:
        assert why in cli.refused(*asked)
        return
    answer = json.loads(cli.ok(*asked, "--json"))
    assert answer["advice"].endswith(".")
    numbers = {
        "rank": lambda: [each["probe"] for each in answer["backbones"]],
        "layers": lambda: [each["probe"] for each in answer["depths"]],
        "transfer": lambda: [answer["pretrained"], *(each["score"] for each in answer["rivals"])],
        "curve": lambda: [each["score"] for each in answer["points"]],
        "audit": list,
        "advise": lambda: [each["score"] for each in answer["trials"]],
    }
    for each in numbers[command]():
        assert each["low"] <= each["value"] <= each["high"]
    if command == "audit":
        # Every row has a rank, or it is said why none has.
        ranks = [rank for split in answer["suspicion"].values() for _, rank in split]
        assert any(rank is not None for rank in ranks) or answer["notes"]


def test_two_regressions_that_predict_alike_are_the_same(cli: Cli, bert: Path, tmp_path: Path) -> None:
    # Three texts, three numbers: any backbone fits them exactly, and the seventh digit is no reason to prefer one.
    rows = [(f"the {word} sat", WORDS.index(word) / 2) for word in WORDS[:3] for _ in range(20)]
    write(tmp_path / "data.csv", rows)
    given = ["--backbone", bert, "--data", tmp_path / "data.csv", "--task", "regression"]
    answer = json.loads(cli.ok("transfer", *given, "--seeds", "1", "--json"))
    assert answer["pretrained"]["value"] > 0.999
    assert answer["verdict"] == "none"
    assert answer["hurt"] == []
    answer = json.loads(cli.ok("layers", *given, "--json"))
    assert answer["chosen"] == 1

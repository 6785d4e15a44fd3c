"""A quick try and a run turned into a recipe: rows drawn as said, splits made as said, the very same recipe again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from runs import Cli, metrics

import hftl
from hftl.data import load_data
from hftl.data.limit import limited
from hftl.recipes import find_recipe

LIVE = """
import datasets
from hftl import Recipe, recipe

@recipe
def live() -> Recipe:
    rows = datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]})
    return Recipe(backbone="b", data=datasets.DatasetDict(train=rows))
"""


def table(path: Path, rows: int = 200) -> Path:
    """Texts of three classes of very different size, the last of which has two rows."""
    lines = ["text,label"]
    for number in range(rows):
        label = "rare" if number in (17, 90) else "few" if number % 10 == 0 else "many"
        lines.append(f"text number {number},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


def counted(labels: np.ndarray) -> dict[int, int]:
    return dict(Counter(labels.tolist()))


def test_a_limit_keeps_every_class_in_about_its_share(tmp_path: Path):
    data = load_data(str(table(tmp_path / "t.csv", 2000)), wants="text", test_size=0.5)
    part = limited(data, 100, seed=0)
    assert part.sizes() == {"train": 100, "test": 100}
    whole, drawn = counted(data.train.labels), counted(part.train.labels)
    assert set(drawn) == set(whole)
    for label, count in whole.items():
        assert abs(drawn[label] - 100 * count / len(data.train)) <= 2
    names = [data.train.inputs.name(i) for i in range(len(data.train))]
    assert {part.train.inputs.name(i) for i in range(100)} < set(names)
    again, other = limited(data, 100, seed=0), limited(data, 100, seed=1)
    assert list(again.train.inputs) == list(part.train.inputs)
    assert list(other.train.inputs) != list(part.train.inputs)
    assert part.notes[-1] == "limited to 100 rows of each split, seed 0: train 100 of 1,000, test 100 of 1,000"
    assert part.identity["labels_digest"] != data.identity["labels_digest"]
    # What is small enough is left alone.
    assert limited(data, 10_000, seed=0) is data
    with pytest.raises(hftl.DataError, match="give a limit of at least 3"):
        limited(data, 2, seed=0)


def test_a_limit_shows_every_label_where_rows_have_several(tmp_path: Path):
    lines = ["text,labels"] + [f"t {i},{'a|b' if i % 2 else 'a'}{'|c' if i == 30 else ''}" for i in range(60)]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    data = load_data(str(tmp_path / "m.csv"), wants="text", task="multi_label", test_size=0.3)
    part = limited(data, 5, seed=0)
    assert len(part.train) == 5
    assert (part.train.labels.sum(0) > 0).all()


def test_a_validation_split_is_set_aside_and_chooses(cli: Cli, tmp_path: Path):
    tiny.save("bert", tmp_path / "bert")
    line = ["run", "--backbone", "./bert", "--data", table(tmp_path / "t.csv"), "--limit", 60]
    said = cli.ok(*line, "--validation-size", 0.25, "--out", "head")
    assert "validation split: 40 of 160 training rows set aside, stratified, seed 0" in said
    assert "limited to 60 rows of each split, seed 0: train 60 of 120" in said
    assert metrics(tmp_path / "head")["rows"] == {"train": 60, "validation": 40, "test": 40}
    assert metrics(tmp_path / "head")["head"]["chosen_on"] == "validation split"
    recipe = json.loads((tmp_path / "head" / "recipe.json").read_text())["recipe"]
    assert (recipe["limit"], recipe["validation_size"]) == (60, 0.25)
    # It chooses the epoch too; the last line says what came of it.
    said = cli.ok(*line, "--validation-size", 0.25, "--method", "full", "--epochs", 1, "--out", "full")
    assert "epochs    the best by accuracy on the validation split is kept" in said
    last = said.splitlines()[-1]
    history = metrics(tmp_path / "full")["finetune"]["epochs"]
    kept = metrics(tmp_path / "full")["finetune"]["kept_epoch"]
    numbers = [f"{epoch['accuracy']:.4f}" for epoch in history]
    if kept:
        assert last.startswith(
            f"epochs    start → epoch 1 of 1: accuracy {numbers[0]} → {numbers[1]} on the validation"
        )
    else:
        assert f"start     kept, because no epoch was better on the validation split: accuracy {numbers[0]}, " in last


def test_a_validation_split_of_the_data_s_own_is_not_doubled(tmp_path: Path):
    for split in ("train", "validation", "test"):
        table(tmp_path / f"{split}.csv")
    with pytest.raises(hftl.DataError, match="bring a validation split of 200 rows: leave out --validation-size"):
        load_data(str(tmp_path), wants="text", validation_size=0.1)


@pytest.mark.parametrize(
    "flags",
    [
        ["--folds", "2", "--strengths", "1,10", "--class-weight", "balanced"],
        ["--method", "lora", "--r", "2", "--epochs", "1", "--set", 'method.lora.target_modules=["query"]'],
    ],
)
def test_a_run_s_recipe_as_a_file_gives_the_very_same(cli: Cli, tmp_path: Path, flags: list[str]):
    tiny.save("bert", tmp_path / "bert")
    table(tmp_path / "t.csv")
    (tmp_path / "drop.csv").write_text("split,row\ntrain,t.csv row 4\ntrain,t.csv row 12\n")
    line = ["--data", "t.csv", "--seed", "3", "--limit", "40", "--label-columns", "label", "--drop", "drop.csv"]
    cli.ok("run", "--backbone", "./bert", *line, *flags, "--out", "first", "--quiet")
    said = cli.ok("new", "recipe", "again", "--from", "first")
    assert said.splitlines() == ["again.py: the recipe of first", "    hftl run again.py"]
    source = (tmp_path / "again.py").read_text()
    assert 10 <= len(source.splitlines()) <= 30
    # What has its default is left out, and dropped rows stand in a file of their own.
    assert "test_size" not in source
    assert "calibrate" not in source
    assert 'drop=Path(__file__).with_name("again_drop.csv"),  # 2 rows' in source
    cli.ok("run", "again.py", "--out", "second", "--quiet")
    first, second = (json.loads((tmp_path / run / "recipe.json").read_text()) for run in ("first", "second"))
    # A path is whole now, so that the file may stand anywhere.
    for name in ("backbone", "data"):
        second["recipe"][name] = first["recipe"][name]
    assert second["recipe"] == first["recipe"]
    assert metrics(tmp_path / "second")["eval"] == metrics(tmp_path / "first")["eval"]
    assert "is there already" in cli.refused("new", "recipe", "again", "--from", "first")
    assert "is no run" in cli.refused("new", "recipe", "--from", "nothing")
    assert "NAME" in cli.refused("new", "recipe")


def test_what_only_python_had_is_said_to_be_missing(cli: Cli, tmp_path: Path):
    import datasets

    tiny.save("bert", tmp_path / "bert")
    rows = {"text": [f"text {i}" for i in range(30)], "label": ["a", "b", "c"] * 10}
    recipe = hftl.Recipe(
        backbone=str(tmp_path / "bert"), data=datasets.DatasetDict(train=datasets.Dataset.from_dict(rows))
    )
    hftl.run(recipe, out="run", name='"""; import os', quiet=True)
    said = cli.ok("new", "recipe", "--from", "run")
    assert "the run was given <DatasetDict> in Python, which a file cannot name: fill it in" in said
    (tmp_path / "live.py").write_text(LIVE)
    assert 'data="<DatasetDict>",' in cli.ok("run", "live.py", "--show")
    (file,) = tmp_path.glob("*import_os.py")
    assert "# fill in: the run had them from Python" in file.read_text()
    assert find_recipe(str(file))().seed == 0


def test_every_run_of_images_can_be_limited_too(cli: Cli, tmp_path: Path):
    tiny.save("vit", tmp_path / "vit")
    runs.write_images(tmp_path / "data", per_class=20)
    cli.ok("run", "--backbone", "./vit", "--data", "data", "--limit", 9, "--folds", 2, "--out", "run")
    assert metrics(tmp_path / "run")["rows"] == {"train": 9, "test": 9}
    assert metrics(tmp_path / "run")["features"]["computed"] == 18

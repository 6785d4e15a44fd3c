"""Pictures for a backbone that reads texts, and texts for one that reads pictures, are named as what they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest
import runs
import tiny
from runs import Cli

import hftl

RECIPE = """
from hftl import Head, Recipe, recipe

@recipe
def r() -> Recipe:
    return Recipe(backbone="./bert", data="texts.csv", method=Head(folds=2))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds of backbones, and both kinds of data in all shapes."""
    folder = tmp_path_factory.mktemp("made")
    tiny.save("vit", folder / "vit")
    tiny.save("bert", folder / "bert")
    pictures = sorted(runs.write_images(folder / "pictures").rglob("*.png"))
    runs.write_texts(folder / "texts.csv", 40)
    lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in pictures]
    (folder / "paths.csv").write_text("\n".join(["picture,label", *lines]))
    for label in ("a", "b"):
        (folder / "files" / label).mkdir(parents=True)
        for i in range(6):
            (folder / "files" / label / f"{i}.txt").write_text("the cat sat")
    (folder / "r.py").write_text(RECIPE)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("data", ["pictures", "paths.csv", "sample:digits"])
def test_pictures_for_a_backbone_of_texts_are_named(cli: Cli, here: Path, data: str):
    line = cli.refused("run", "r.py", "--data", data)
    assert f"{data}: bert reads texts; these are pictures: take a backbone that reads them" in line
    # The advice, followed.
    assert '"image"' in cli.ok("backbones", "--modality", "image", "--json")
    if data != "sample:digits":
        cli.ok("run", "r.py", "--data", data, "--backbone", "./vit", "--out", "run")


@pytest.mark.parametrize("data", ["texts.csv", "files"])
def test_texts_for_a_backbone_of_pictures_are_named(cli: Cli, here: Path, data: str):
    line = cli.refused("run", "r.py", "--data", data, "--backbone", "./vit")
    assert f"{data}: vit reads pictures; these are texts: take a backbone that reads them" in line


def test_paths_are_read_as_texts_where_that_is_said(cli: Cli, here: Path):
    assert "say --input-columns picture" in cli.refused("run", "r.py", "--data", "paths.csv")
    cli.ok("run", "r.py", "--data", "paths.csv", "--input-columns", "picture", "--out", "run")


def test_another_fault_keeps_its_own_message(cli: Cli, here: Path):
    (here / "paths.csv").write_text("picture,label\ngone/1.png,a\ngone/2.png,b\n" * 6)
    line = cli.refused("run", "r.py", "--data", "paths.csv", "--backbone", "./vit")
    assert "no file" in line
    assert "these are" not in line
    assert "these are" not in cli.refused("run", "r.py", "--data", "nothing.csv")


def test_data_made_in_python_are_named_without_a_reference(made: Path):
    texts = datasets.Dataset.from_dict({"text": ["the cat sat", "a dog ran"] * 10, "label": [0, 1] * 10})
    with pytest.raises(hftl.DataError, match=r"^vit reads pictures; these are texts"):
        hftl.run(hftl.Recipe(backbone=str(made / "vit"), data=texts), out=made / "run", quiet=True)


def test_folds_beside_a_validation_split_are_said_to_be_unused(cli: Cli, here: Path):
    (here / "split").mkdir()
    for split in ("train", "validation", "test"):
        runs.write_texts(here / "split" / f"{split}.csv", 30)
    cli.ok("run", "r.py", "--data", "split", "--out", "run")
    assert "folds are not used" in cli.out
    cli.ok("run", "r.py", "--out", "other")
    assert "folds are not used" not in cli.out

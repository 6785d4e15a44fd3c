"""Recipes with modules beside them; a run that is run again from its record, and from the recipe on its card."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import runs
import tiny
from runs import Cli, metrics

import hftl
from hftl.recipes import find_recipe

HELPER = "backbone_of = {folder!r}\n"
RECIPE = """
from hftl import Head, Recipe, recipe
from {helper} import backbone_of

@recipe
def small() -> Recipe:
    from {helper}_too import data_of

    return Recipe(backbone=backbone_of, data=data_of, method=Head(folds=2))
"""


def write_recipe(folder: Path, helper: str, backbone: str = "a/b", data: str = "c/d") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{helper}.py").write_text(f"backbone_of = {backbone!r}\n")
    (folder / f"{helper}_too.py").write_text(f"data_of = {data!r}\n")
    (folder / "small.py").write_text(RECIPE.format(helper=helper))
    return folder / "small.py"


def test_a_recipe_imports_the_modules_beside_it_and_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    # An earlier test of this process may have read a recipe of the same name.
    monkeypatch.delitem(sys.modules, "hftl_recipe_small", raising=False)
    path, modules = list(sys.path), set(sys.modules)
    for name in ("one", "two"):
        # Both have modules of the same names, with other content.
        made = find_recipe(str(write_recipe(tmp_path / name, "beside_me", name, f"{name}.csv")))()
        assert (made.backbone, made.data) == (name, f"{name}.csv")
    assert sys.path == path
    assert set(sys.modules) - modules == {"hftl_recipe_small"}


def test_a_module_beside_a_recipe_shadows_no_library(tmp_path: Path):
    (tmp_path / "datasets.py").write_text("raise RuntimeError('not me')\n")
    (tmp_path / "r.py").write_text(
        "import datasets\nfrom hftl import Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        "    return Recipe(backbone='a', data=datasets.__name__)\n"
    )
    assert find_recipe(str(tmp_path / "r.py"))().data == "datasets"


def test_a_recipe_built_on_an_imported_one_is_the_one_meant(tmp_path: Path):
    write_recipe(tmp_path, "helper_of_base")
    (tmp_path / "mine.py").write_text(
        "from small import small\nfrom hftl import Recipe, recipe\n\n@recipe\ndef mine() -> Recipe:\n"
        "    return small().model_copy(update={'seed': 3})\n"
    )
    assert find_recipe(str(tmp_path / "mine.py"))().seed == 3


@pytest.fixture
def first(cli: Cli, tmp_path: Path) -> Path:
    """A run of local files, given by relative paths."""
    tiny.save("vit", tmp_path / "backbone")
    runs.write_images(tmp_path / "pictures")
    cli.ok("run", write_recipe(tmp_path, "of_first", "./backbone", "pictures"), "--seed", 3, "--out", "first")
    return tmp_path / "first"


def test_a_run_is_run_again_from_its_folder_or_its_record(
    cli: Cli, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for ref in (first, first / "recipe.json"):
        out = tmp_path / f"again-{ref.name}"
        cli.ok("run", ref, "--out", out)
        assert metrics(out)["eval"] == metrics(first)["eval"]
        assert metrics(out)["features"]["computed"] == 0
        before, after = (json.loads((run / "recipe.json").read_text())["recipe"] for run in (first, out))
        # The same but for the paths, which are whole now.
        assert {**after, "data": None, "backbone": None} == {**before, "data": None, "backbone": None}
        assert runs.predictions(out) == runs.predictions(first)
    # A run of a run goes beside those of its recipe, and flags change it like any other.
    cli.ok("run", first, "--seed", 4)
    assert (elsewhere / "runs" / "small").is_dir()
    assert "seed=4" in cli.ok("run", first, "--seed", 4, "--show")


def test_what_is_gone_is_said_and_can_be_given(cli: Cli, first: Path, tmp_path: Path):
    shutil.move(tmp_path / "pictures", tmp_path / "moved")
    assert "pictures" in cli.refused("run", first, "--out", "again")
    cli.ok("run", first, "--data", "moved", "--out", "again")
    (first / "recipe.json").write_text("{")
    assert "recipe.json is damaged" in cli.refused("run", first)
    assert "no file" in cli.refused("run", tmp_path / "nothing" / "recipe.json")


def test_the_card_s_recipe_says_what_to_fill_in_and_runs_when_it_is(cli: Cli, first: Path, tmp_path: Path):
    text = (first / "model" / "README.md").read_text()
    recipe = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[-1]
    assert str(tmp_path) not in text
    assert re.search(r'backbone="backbone",  # fill in: the folder', recipe)
    assert re.search(r'data="pictures",  # fill in: the path', recipe)
    assert "with your own paths where a comment asks for them" in text
    filled = recipe.replace('backbone="backbone"', 'backbone="./backbone"')
    (tmp_path / "again.py").write_text(filled)
    cli.ok("run", "again.py", "--out", "again")
    assert metrics(tmp_path / "again")["eval"] == metrics(first)["eval"]


def test_the_folder_may_be_text(first: Path, tmp_path: Path):
    recipe = hftl.Recipe(backbone="./backbone", data="pictures")
    done = hftl.run(recipe, out="runs/x", quiet=True)
    assert done is not None
    assert done.folder == Path("runs/x")
    assert (tmp_path / "runs" / "x" / "model" / "model.safetensors").is_file()

"""Flags that are true or false have one meaning in every spelling, for fields and for a recipe's own parameters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import tiny
from runs import Cli

from hftl.cli.fields import recipe_flags
from hftl.recipes import field_names, find_recipe

RECIPE = """
from hftl import Full, Head, Recipe, recipe

@recipe
def r(weights: bool = True, extra: bool | None = None, fine: bool = False) -> Recipe:
    return Recipe(backbone=f"w={weights},e={extra}", data="d", method=Full() if fine else Head())
"""
SPELT = {
    True: ["--{}", "--{} true", "--{}=true", "--{} yes", "--{}=1", "--{}=On", "--no-{} false", "--no-{}=no"],
    False: ["--no-{}", "--{} false", "--{}=false", "--{} no", "--{}=0", "--{} off", "--no-{}=true", "--no-{} yes"],
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "r.py").write_text(RECIPE)
    return str(tmp_path / "r.py")


@pytest.mark.parametrize(("value", "spelling"), [(value, each) for value in SPELT for each in SPELT[value]])
def test_a_boolean_is_spelt_either_way_for_fields_and_parameters(cli: Cli, file: str, value: bool, spelling: str):
    shown = cli.ok("run", file, *spelling.format("calibrate").split(), "--show")
    assert f"calibrate={value}" in shown
    shown = cli.ok("run", file, *spelling.format("weights").split(), *spelling.format("extra").split(), "--show")
    assert f"w={value},e={value}" in shown
    shown = cli.ok("features", file, "--show", "--fine", *spelling.format("gradient-checkpointing").split())
    assert f"gradient_checkpointing={value}" in shown
    shown = cli.ok("run", file, "--fine", "--set", f"method.flip={str(value).lower()}", "--show", "--seed", 3)
    assert f"flip={value}" in shown


def test_what_is_neither_true_nor_false_is_said_with_both_spellings(cli: Cli, file: str):
    line = cli.refused("run", file, "--calibrate", "maybe", "--show")
    assert line == "hftl: --calibrate 'maybe': write true or false, or --calibrate or --no-calibrate"
    # The advice, followed.
    assert "calibrate=False" in cli.ok("run", file, "--no-calibrate", "--show")
    assert "no-seed" in cli.refused("run", file, "--no-seed", "--show")


def test_features_show_what_they_would_compute_and_compute_nothing(cli: Cli, file: str, tmp_path: Path):
    shown = cli.ok("features", file, "--show", "--seed", 5, "--set", "max_length=9", "--allow-pickle")
    assert "seed=5" in shown
    assert "max_length=9" in shown
    assert not (tmp_path / "hftl-cache").exists()


# ── help ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown_help(cli: Cli, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Help on a wide screen, in which no text is folded."""
    monkeypatch.setenv("COLUMNS", "900")
    return cli.ok(*arguments, "--help")


def test_every_field_has_a_flag_in_a_group_with_its_type_default_and_a_line(
    cli: Cli, file: str, monkeypatch: pytest.MonkeyPatch
):
    shown = shown_help(cli, monkeypatch, "run", file)
    lines = shown.splitlines()
    flags = recipe_flags()
    # Functions have none.
    assert {flag.name for flag in flags} == set(field_names()) - {"metrics"}
    for flag in flags:
        (line,) = (line for line in lines if re.search(rf"{flag.flag}[ ,]", line) and flag.text in line)
        assert flag.text
        assert flag.default in line
        assert flag.is_boolean or flag.type in line
    own = lines.index(next(line for line in lines if "Flags of the recipe r" in line))
    assert all(any(name in line for line in lines[own : own + 6]) for name in ("--weights", "--extra", "--fine"))
    for panel in ("Recipe", "Method head", "Method full, lora, partial", "Method lora", "Method partial"):
        assert any(f"─ {panel} ─" in line for line in lines), panel
    # What rich could take for markup is text.
    assert "user/name[@revision]" in shown


def test_defaults_and_choices_are_those_of_the_fields():
    flags = {flag.name: flag for flag in recipe_flags()}
    assert flags["method.lr"].default == "5e-05; lora 0.0002"
    assert flags["method.lr"].type == "FLOAT|auto"
    assert flags["method.folds"].default == "5"
    assert flags["method.rule"].choices == ("best", "one_se")
    assert flags["method.calibrate"].default == "true"
    assert flags["max_length"].default == "what the model allows"
    assert flags["task"].default == "inferred"
    assert flags["method.class_weight"].panel == "All methods"


def test_a_mistyped_flag_names_the_closest_ones_and_no_others(cli: Cli, file: str):
    line = cli.refused("run", file, "--epohcs", "3")
    assert "No such option: --epohcs" in line
    assert "--epochs" in line
    assert len(line) < 160
    assert "--weights" in cli.refused("run", file, "--weihgts")


def test_flags_may_stand_before_the_recipe_and_methods_are_named_in_any_case(cli: Cli, file: str):
    assert "folds=7" in cli.ok("run", "--folds", 7, "--calibrate", file, "--show")
    for spelt in ("LoRA", "lora", "LORA"):
        assert "method=LoRA(" in cli.ok("run", file, "--method", spelt, "--show")
    assert "did you mean 'lora'" in cli.refused("run", file, "--method", "lorra", "--show")


def test_what_is_shown_is_a_recipe_file_that_gives_the_same(cli: Cli, file: str, tmp_path: Path):
    flags = ["--seed", 5, "--method", "lora", "--r", 4, "--set", 'method.lora.target_modules=["query","value"]']
    shown = cli.ok("run", file, *flags, "--show")
    (tmp_path / "shown.py").write_text(shown)
    made = find_recipe(str(tmp_path / "shown.py"))()
    assert (made.seed, made.method.name) == (5, "lora")
    assert cli.ok("run", "shown.py", "--show") == shown


# ── without a recipe ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_backbone_and_data_are_recipe_enough(cli: Cli, tmp_path: Path):
    tiny.save("vit", tmp_path / "my-vit")
    runs.write_images(tmp_path / "photos")
    both = ["--backbone", "./my-vit", "--data", "photos"]
    said = cli.ok("run", *both, "--folds", 2)
    assert "none is named: the flags say what to do, and the run goes to runs/photos-my-vit/" in said
    (run,) = (tmp_path / "runs" / "photos-my-vit").iterdir()
    recipe = json.loads((run / "recipe.json").read_text())["recipe"]
    assert (recipe["backbone"], recipe["data"], recipe["method"]["folds"]) == ("./my-vit", "photos", 2)
    assert "folds=3" in cli.ok("layers", *both, "--folds", 3, "--show")
    for command in ("run", "features", "rank", "audit"):
        assert cli.refused(command, *both[:2]) == (
            "hftl: --data is missing: name a recipe, or say with --backbone and --data what to do"
        )
        assert "--backbone is missing" in cli.refused(command, *both[2:])
        assert "--backbone and --data are missing" in cli.refused(command)


def test_two_processes_need_no_recipe_either(tmp_path: Path):
    runs.write_images(tmp_path / "photos")
    tiny.save("vit", tmp_path / "my-vit")
    line = ["run", "--backbone", "./my-vit", "--data", "photos", "--folds", "2", "--num-processes", "2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "hftl", *line], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # One object: the other process says nothing.
    assert json.loads(done.stdout)["folder"].startswith("runs/photos-my-vit/")


# ── completion ───────────────────────────────────────────────────────────────────────────────────────────────────────


def completed(words: str, folder: Path) -> list[str]:
    """What bash is offered for the last of some words."""
    environment = {**os.environ, "_HFTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "HFTL_PLUGINS": ""}
    environment["COMP_CWORD"] = str(words.count(" "))
    code = "import sys; from hftl.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_shell_is_offered_recipes_runs_backbones_and_methods(tmp_path: Path):
    (tmp_path / "mine.py").write_text(RECIPE)
    run = tmp_path / "runs" / "mine" / "20260101-000000"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(json.dumps({"recipe": {"backbone": "b", "method": {"name": "head"}}}))
    folder = "runs/mine/20260101-000000"
    assert completed("hftl run mine", tmp_path) == ["mine.py"]
    assert completed("hftl run runs", tmp_path) == completed("hftl push r", tmp_path) == [folder]
    assert completed("hftl run mine.py --backbone hf", tmp_path) == ["hftl/glyph-vit-tiny"]
    assert completed("hftl run --method l", tmp_path) == ["lora"]
    assert completed("hftl run --epo", tmp_path) == ["--epochs"]
    assert completed("hftl rank --data mi", tmp_path) == ["mine.py"]


def test_a_recipe_that_was_written_again_in_the_same_second_runs_as_it_stands(tmp_path: Path):
    file = tmp_path / "quick.py"
    for seed in (1, 2):
        file.write_text(
            "from hftl import Recipe, recipe\n\n@recipe\ndef quick() -> Recipe:\n"
            f"    return Recipe(backbone='hftl/glyph-vit-tiny', data='sample:digits', seed={seed})\n"
        )
        os.utime(file, (1_700_000_000, 1_700_000_000))
        assert find_recipe(str(file))().seed == seed

"""Flags that are true or false have one meaning in every spelling, for fields and for a recipe's own parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Cli

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

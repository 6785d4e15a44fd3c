"""What a message advises works when it is done."""

from __future__ import annotations

import re
from pathlib import Path

import runs
import tiny
import torch
from runs import Cli
from safetensors.torch import load_file

RECIPE = """
from hftl import Head, Recipe, recipe

@recipe
def r() -> Recipe:
    return Recipe(backbone="./bert", data="texts.csv", method=Head(folds=2))
"""


def test_a_folder_with_a_pickle_is_converted_as_the_message_says(cli: Cli, tmp_path: Path):
    tiny.save("bert", tmp_path / "bert")
    runs.write_texts(tmp_path / "texts.csv", 40)
    (tmp_path / "r.py").write_text(RECIPE)
    weights = tmp_path / "bert" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "bert" / "pytorch_model.bin")
    weights.unlink()
    line = cli.refused("run", "r.py")
    # A flag that is of no use here is not advised.
    assert "--allow-pickle" not in line
    advice = re.search(r"AutoModel\..*", line)
    assert advice
    exec(f"from transformers import AutoModel\n{advice[0]}")
    cli.ok("run", "r.py", "--out", "run")
    (tmp_path / "bert" / "pytorch_model.bin").unlink()
    weights.unlink()
    assert "there are no weights in the folder" in cli.refused("run", "r.py")


def test_weights_of_another_shape_are_no_head_to_be_trained(cli: Cli, tmp_path: Path):
    tiny.save("bert", tmp_path / "bert")
    runs.write_texts(tmp_path / "texts.csv", 40)
    (tmp_path / "r.py").write_text(RECIPE)
    config = tmp_path / "bert" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 50'))
    line = cli.refused("run", "r.py")
    assert "such as encoder.layer.0.intermediate.dense" in line.replace("bert.", "")
    assert "have another shape than its config.json says" in line
    assert "report" not in line


def test_a_misspelt_flag_and_recipe_name_what_is_meant_and_that_works(cli: Cli, tmp_path: Path):
    (tmp_path / "r.py").write_text(RECIPE)
    assert "--fold" in cli.refused("run", "r.py", "--fold", "3", "--show")
    assert "did you mean 'r.py'" in cli.refused("run", "rr.py")
    assert "method.folds" in cli.refused("run", "r.py", "--set", "fold=3")
    assert "folds=3" in cli.ok("run", "r.py", "--set", "method.folds=3", "--show")

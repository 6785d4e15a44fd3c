"""What a message advises works when it is done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import runs
import tiny
import torch
from runs import Cli
from safetensors.torch import load_file, save_file

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


def _without(weights: Path, part: str) -> None:
    """Take tensors out of a checkpoint."""
    kept = {name: value for name, value in load_file(weights).items() if part not in name}
    save_file(kept, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["encoder.layer.1.", "encoder.layer.0.output.dense.bias", "word_embeddings"])
def test_missing_weights_of_the_body_are_no_head_to_be_trained(cli: Cli, tmp_path: Path, part: str):
    tiny.save("bert", tmp_path / "bert")
    runs.write_texts(tmp_path / "texts.csv", 40)
    (tmp_path / "r.py").write_text(RECIPE)
    _without(tmp_path / "bert" / "model.safetensors", part)
    line = cli.refused("run", "r.py")
    assert re.search(rf"its weights lack \d+ tensors that config.json describes, such as bert.*{part}", line)


def test_a_missing_pooler_is_trained_with_the_head_and_named(cli: Cli, tmp_path: Path):
    """Checkpoints that were trained to fill gaps in texts have none."""
    tiny.save("bert", tmp_path / "bert")
    runs.write_texts(tmp_path / "texts.csv", 40)
    (tmp_path / "r.py").write_text(RECIPE)
    assert "the checkpoint lacks" not in cli.ok("run", "r.py", "--out", "whole")
    _without(tmp_path / "bert" / "model.safetensors", "pooler")
    said = cli.ok("run", "r.py", "--out", "run")
    assert "the checkpoint lacks 'bert.pooler.dense.weight', 'bert.pooler.dense.bias', so these are new" in said


def test_a_misspelt_flag_and_recipe_name_what_is_meant_and_that_works(cli: Cli, tmp_path: Path):
    (tmp_path / "r.py").write_text(RECIPE)
    assert "--folds" in cli.refused("run", "r.py", "--flods", "3", "--show")
    assert "did you mean 'r.py'" in cli.refused("run", "rr.py")
    assert "method.calibrate" in cli.refused("run", "r.py", "--set", "calibrat=false")
    assert "folds=3" in cli.ok("run", "r.py", "--set", "method.folds=3", "--show")

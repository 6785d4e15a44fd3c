"""MiniLM-L6 keeps hftl's promises, and its recipe runs on real texts without a network."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hftl.cli import build_app
from hftl.testing import check_backbone


def test_backbone() -> None:
    check_backbone("minilm-l6")


# Requests to a bank, in the manner of Banking77's.
INTENTS = {
    "lost_card": ["I lost my card", "my card is missing", "I cannot find my bank card", "somebody stole my card"],
    "top_up": ["how do I top up", "my top up failed", "can I top up by cheque", "add money to my account"],
    "exchange_rate": ["what is the exchange rate", "the rate was wrong", "your dollar rate today", "rates for euros"],
}
HELD_OUT = {
    "lost_card": "where is my card, it is gone",
    "top_up": "topping up does not work",
    "exchange_rate": "euro rate",
}


def test_recipe_on_a_folder_of_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (
        ("train", [(text, label) for label, texts in INTENTS.items() for text in texts]),
        ("test", [(text, label) for label, text in HELD_OUT.items()]),
    ):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    out = tmp_path / "run"
    command = ["run", "minilm", "--data", str(tmp_path), "--folds", "2", "--offline", "--quiet", "--out", str(out)]
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    done = CliRunner().invoke(build_app(), command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "recipe.json").read_text())["backbone"]["name"] == "minilm-l6"
    assert json.loads((out / "metrics.json").read_text())["eval"]["accuracy"] == 1.0

    from sentence_transformers import SentenceTransformer

    logits = SentenceTransformer(str(out / "model"), device="cpu").encode(list(HELD_OUT.values()))
    names = json.loads((out / "model" / "config.json").read_text())["id2label"]
    assert [names[str(i)] for i in np.argmax(logits, 1)] == list(HELD_OUT)

"""A bound on memory: features are read in blocks where they do not fit, and what comes out is the same."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from runs import Cli

from hftl import Head, Recipe, features
from hftl.data.dataset import RowNames, TextColumns, Texts
from hftl.errors import RecipeError
from hftl.extraction import stored_matrix
from hftl.frozen.head import train_folds, train_head
from hftl.frozen.recipe import inputs_of
from hftl.frozen.vectors import matrix_of
from hftl.plugins.spec import BackboneOptions
from hftl.store.digests import digest_texts
from hftl.terminal import Terminal

DIGITS = ("run", "--backbone", "hftl/glyph-vit-tiny", "--data", "sample:digits")


def smallest(line: str) -> str:
    found = re.search(r"give --memory (\S+) or more", line)
    assert found, line
    return found[1]


def test_a_run_within_the_smallest_memory_that_is_named_says_what_a_run_in_memory_says(cli: Cli) -> None:
    few = (*DIGITS, "--limit", "500", "--report")
    cli.ok(*few, "--out", "plain")
    refused = cli.refused(*few, "--memory", "1M")
    said = cli.ok(*few, "--memory", smallest(refused), "--out", "bounded")

    assert "of features are read in blocks" in said
    plain, bounded = (json.loads(Path(run, "metrics.json").read_text()) for run in ("plain", "bounded"))
    assert bounded["head"]["chosen"] == pytest.approx(plain["head"]["chosen"], rel=1e-9)
    assert bounded["head"]["objective"] == pytest.approx(plain["head"]["objective"], rel=1e-6)
    assert bounded["eval"]["accuracy"] == plain["eval"]["accuracy"]
    assert bounded["head"]["baselines"] == plain["head"]["baselines"]
    scores = [
        np.stack(pq.read_table(f"{run}/predictions.parquet")["scores"].to_pylist()) for run in ("plain", "bounded")
    ]
    assert np.abs(scores[0] - scores[1]).max() < 1e-3
    pages = [json.loads(Path(run, "report.json").read_text()) for run in ("plain", "bounded")]
    assert pages[0]["worst"] == pages[1]["worst"]
    assert pages[0]["copies"] == pages[1]["copies"]


def test_a_bound_that_holds_all_features_changes_no_bit(cli: Cli) -> None:
    cli.ok(*DIGITS, "--limit", "100", "--out", "plain")
    said = cli.ok(*DIGITS, "--limit", "100", "--memory", "4G", "--out", "bounded")

    assert "in blocks" not in said
    one, other = (Path(run, "model", "model.safetensors").read_bytes() for run in ("plain", "bounded"))
    assert one == other


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--cv", "5"), "--cv deals all features in memory to folds"),
        (("--views", "2", "--flip"), "heads on several views of a picture are solved on all features in memory"),
    ],
)
def test_what_needs_all_features_at_once_is_refused_with_what_it_takes(
    cli: Cli, flags: tuple[str, ...], why: str
) -> None:
    given = (*DIGITS, "--limit", "100", *flags)
    line = cli.refused(*given, "--memory", "1M")
    assert why in line
    cli.ok(*given, "--memory", smallest(line), "--no-report")


def test_features_keep_the_bound_too(cli: Cli) -> None:
    few = ("features", *DIGITS[1:], "--limit", "20")
    line = cli.refused(*few, "--memory", "1M")
    cli.ok(*few, "--memory", smallest(line))
    with pytest.raises(RecipeError, match="give --memory"):
        features(Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits", limit=20, memory="1M"), quiet=True)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ((*DIGITS, "--memory", "20"), "has no unit; write 20G"),
        ((*DIGITS, "--memory", "much"), "is no size"),
        (("curve", *DIGITS[1:], "--memory", "4G"), "leave it out"),
    ],
)
def test_a_bound_that_is_none_or_that_nobody_keeps_is_refused(cli: Cli, command: tuple[str, ...], line: str) -> None:
    assert line in cli.refused(*command)


@pytest.fixture
def in_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Features of digits that were left in the store, with the target and the data."""
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits", method=Head(), limit=150)
    stored = stored_matrix(recipe, quiet=True).features
    _, target, data = inputs_of(recipe, Terminal(quiet=True), BackboneOptions(None, True, False))
    return target, replace(stored, memory=1 << 20), data


def test_blocks_are_the_rows_that_were_stored_and_each_row_stands_in_one(in_store: Any) -> None:
    _, known, _ = in_store
    part = known.splits["train"]
    whole = known.loaded(part).columns["features"]
    some = torch.arange(0, len(whole), 3)

    matrix = matrix_of(known, part, torch.device("cpu"))

    assert torch.equal(matrix.whole(), whole)
    assert torch.equal(matrix.take(some).whole(), whole[some])
    rows = torch.cat([torch.arange(len(whole))[each.rows] for each in matrix.parts])
    assert torch.equal(rows.sort().values, torch.arange(len(whole)))


def test_heads_without_each_fold_are_the_same_from_blocks(in_store: Any) -> None:
    target, known, data = in_store
    gathered = replace(known, splits={name: known.loaded(part) for name, part in known.splits.items()})
    how: dict[str, Any] = {"seed": 0, "device": torch.device("cpu")}
    dealt = np.arange(len(data.train)) % 5

    for train in (
        lambda of: [train_head(Head(), target, of, data, **how)],
        lambda of: train_folds(Head(), target, of, data, dealt, **how),
    ):
        for one, other in zip(train(gathered), train(known), strict=True):
            torch.testing.assert_close(other.logits, one.logits, atol=2e-3, rtol=1e-3)
            assert all(np.array_equal(other.free[name], one.free[name]) for name in one.free)


def test_texts_in_arrow_are_those_of_a_list() -> None:
    texts = ["", "a", "é", "cat", None, "a b", "x" * 50] * 3
    column = pa.chunked_array([texts[:4], texts[4:5], texts[5:]])
    plain = [(text or "",) for text in texts]
    names = RowNames([("t.csv", len(texts))])
    rows = np.array([20, 3, 3, 0, 11])

    both = Texts(TextColumns([column]), names), Texts(plain, names)

    for ours, theirs in (both, tuple(each.select(rows) for each in both)):
        assert list(ours) == list(theirs) == [theirs[row] for row in range(len(theirs))]
        assert [ours[row] for row in range(len(ours))] == list(theirs)
        assert list(ours[1:3]) == list(theirs)[1:3]
        assert ours.lengths().tolist() == theirs.lengths().tolist()
        assert [ours.name(row) for row in range(len(ours))] == [theirs.name(row) for row in range(len(theirs))]
        assert digest_texts(ours).tobytes() == digest_texts(theirs).tobytes()

"""What a bound on memory counts, and where it is no part of a result."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from runs import Cli

from hftl import Recipe
from hftl.data.dataset import RowNames, TextColumns, Texts, bytes_of
from hftl.data.load import load_data
from hftl.errors import RecipeError
from hftl.frozen.bounded import Memory, Solved, free_memory
from hftl.heads.baselines import NEIGHBOURS_AMONG, neighbours_among
from hftl.heads.matrix import Matrix, RowGroup
from hftl.heads.thresholds import asked_thresholds, best_thresholds, f1_scores
from hftl.methods import Aim
from hftl.recipes import fields_of_result
from hftl.terminal import Terminal

DIGITS = ("--backbone", "hftl/glyph-vit-tiny", "--data", "sample:digits", "--limit", "60")
CUT: Any = SimpleNamespace(width=4096, words=False, kind="linear")


def bound(stated: int | None, **changed: Any) -> Memory:
    solved = Solved(outputs=10, output_bytes=16, cuts=False, heads=5, strengths=20)
    return Memory(stated, changed.pop("solved", solved), 0, None, Terminal(quiet=True), **changed)


def needed(memory: Memory, rows: int) -> int:
    """The bytes of the smallest bound that is not refused."""
    low, high = 0, 1 << 50
    while high - low > 1:
        middle = (low + high) // 2
        try:
            Memory(
                middle, memory.solved, memory.held, memory.whole, memory.say, memory.further, memory.processes
            ).check(CUT, rows)
            high = middle
        except RecipeError:
            low = middle
    return high


def test_what_is_needed_grows_with_width_classes_and_processes() -> None:
    few = needed(bound(0), 20_000)
    many = needed(bound(0, solved=Solved(outputs=1000, output_bytes=16, cuts=False, heads=5, strengths=20)), 20_000)

    # Covariances of 4096 features, and the rows that neighbours are looked for among, twice.
    assert few > 256 * 2**20 + 3 * 8 * 4096**2 + 2 * 4 * 20_000 * 4096
    # Five heads in float64 with their curvature pairs, and at each of 20 strengths in float32.
    assert many - few > 5 * 4097 * 990 * (3 * 8 + 20 * 4)
    # Ten heads without two of five folds, each with scales of its own.
    crossed = needed(bound(0, solved=Solved(10, 16, False, heads=5, strengths=20, crossed=5)), 20_000)
    assert crossed - few > 10 * 4 * 4096**2
    assert needed(bound(0, processes=4), 20_000) == pytest.approx(4 * few, rel=1e-6)


def test_views_count_as_the_vectors_that_they_are() -> None:
    plain, viewed = (
        Memory(0, Solved(10, 16, False, 5, 20), 0, "views", Terminal(quiet=True), views) for views in (0, 7 * 20_000)
    )

    assert needed(viewed, 20_000) - needed(plain, 20_000) > 2 * 7 * 20_000 * 4096 * 4


def test_a_bound_is_refused_before_features_are_computed(cli: Cli) -> None:
    cli.refused("run", *DIGITS, "--memory", "1M")

    assert not [file for file in Path(os.environ["HFTL_CACHE"]).rglob("*.safetensors") if file.parent.name != "digests"]


@pytest.mark.parametrize("aim", [Aim("precision", 0.6), Aim("recall", 0.7)])
def test_thresholds_that_are_chosen_a_few_labels_at_a_time_are_the_same(
    aim: Aim, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Rounded, so that rows are equal.
    p = (torch.rand(300, 7, generator=generator) * 50).round() / 50
    y = (torch.rand(300, 7, generator=generator) < p).float()
    together = best_thresholds(p, y), *asked_thresholds(p, y, aim), f1_scores(p > 0.5, y)

    monkeypatch.setattr("hftl.heads.thresholds.CUTS_TOGETHER", 700)
    apart = best_thresholds(p, y), *asked_thresholds(p, y, aim), f1_scores(p > 0.5, y)

    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))


def test_neighbours_are_looked_for_among_all_rows_in_memory_and_among_some_that_are_read() -> None:
    rows = NEIGHBOURS_AMONG + 10
    whole = Matrix.of(torch.zeros(rows, 1))
    parts = [RowGroup(slice(at, at + rows // 2), lambda: torch.zeros(rows // 2, 1)) for at in (0, rows // 2)]
    read = Matrix(parts, torch.Size((rows, 1)), torch.float32, torch.device("cpu"))

    assert (neighbours_among(whole), neighbours_among(read)) == (rows, NEIGHBOURS_AMONG)


def test_a_column_counts_whole_and_once_however_few_of_its_rows_there_are() -> None:
    column = pa.chunked_array([pa.array(["x" * 1000] * 2000)])
    whole = Texts(TextColumns([column]), RowNames([("t", 2000)]))
    few = whole.select(np.arange(10))

    assert bytes_of([few]) == column.nbytes + 10 * 8
    assert bytes_of([few, whole]) == column.nbytes + 2010 * 8


def test_missing_texts_are_counted_and_labels_are_shared_over_chunks() -> None:
    # As Arrow has a large csv: in several chunks.
    table = pa.table(
        {
            "text": pa.chunked_array([["a", None, "b"], ["c", "d", None]]),
            "label": pa.chunked_array([["x", "y", "x"], ["y", "x", "y"]]),
        }
    )
    from datasets import Dataset

    data = load_data(Dataset(table), wants="text", test_size=0.34)

    assert any(note == "2 null texts read as empty" for note in data.notes)
    assert data.label_names == ["x", "y"]


@pytest.mark.parametrize(("memory", "said"), [(True, "valid string"), ("0G", "is no memory"), ("much", "is no size")])
def test_a_bad_memory_names_its_field(memory: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        Recipe(backbone="b", data="d", memory=memory)
    assert refused.value.errors()[0]["loc"] == ("memory",)


def test_memory_is_no_part_of_a_result_and_fields_that_came_later_are_their_defaults() -> None:
    recipe = Recipe(backbone="b", data="d", memory="4G").model_dump(mode="json")
    early = {name: value for name, value in recipe.items() if name not in ("memory", "coverage", "unlabelled")}

    assert fields_of_result(early) == fields_of_result(recipe)
    assert fields_of_result({**early, "seed": 1}) != fields_of_result(recipe)


def test_several_seeds_go_on_with_another_memory(cli: Cli) -> None:
    cli.ok("run", *DIGITS, "--seeds", "2", "--out", "seeds", "--no-report")
    for file in Path("seeds").glob("seed-*/recipe.json"):
        # As a release without the field wrote it.
        record = json.loads(file.read_text())
        del record["recipe"]["memory"]
        file.write_text(json.dumps(record))

    said = cli.ok("run", *DIGITS, "--seeds", "2", "--out", "seeds", "--resume", "--memory", "4G", "--no-report")

    assert said.count("done before") == 2


@pytest.mark.parametrize(
    ("line", "root", "files"),
    [
        ("0::/job/step", "", ("memory.max", "memory.current", "inactive_file")),
        ("5:cpu,memory:/job/step", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_what_is_free_is_what_the_groups_above_leave(
    line: str, root: str, files: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(f"1:pids:/else\n{line}\n")
    for folder, most in (("job", "5000000"), ("job/step", "max")):
        (tmp_path / root / folder).mkdir(parents=True)
        for name, content in zip((*files[:2], "memory.stat"), (most, "2000000", f"{files[2]} 1000000"), strict=True):
            (tmp_path / root / folder / name).write_text(content + "\n")
    monkeypatch.setattr("hftl.control_groups.ROOT", tmp_path)
    monkeypatch.setattr("hftl.control_groups.OWN", tmp_path / "own")

    assert free_memory() == 4_000_000

"""How rows are divided by columns: groups stay together, the past is trained on, strata and given folds are kept."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs import Cli
from sklearn.model_selection import StratifiedGroupKFold
from tiny import save

import hftl
from hftl.data import Texts, load_data
from hftl.data.dataset import Split
from hftl.data.division import deal, folds_of, hold_out_rows, traits_of
from hftl.data.marks import Division, Marks
from hftl.errors import DataError
from hftl.tasks import Task

TABLES = 1000


def table(seed: int, *, by_time: bool = False) -> tuple[Split, Task, float]:
    """Rows of a random task, in random groups of very different sizes, or at random times with many ties."""
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(8, 120))
    task = list(Task)[int(generator.integers(0, 3))]
    labels = task.case(
        single_label=generator.integers(0, generator.integers(2, 6), rows),
        multi_label=(generator.random((rows, 3)) < 0.3).astype(np.float32),
        regression=generator.normal(size=(rows, 1)).astype(np.float32),
        token_labels=None,
    )
    groups = (generator.random(rows) ** 2 * generator.integers(3, rows)).astype(np.int64)
    groups[:2] = 0, rows
    times = generator.integers(0, generator.integers(2, rows), rows).astype(np.float64)
    times[:2] = 0, rows
    strata = generator.integers(0, 4, rows) if generator.random() < 0.5 else None
    marks = Marks(times=times) if by_time else Marks(groups=groups, strata=strata)
    inputs = Texts([("x",)] * rows, [f"row {i}" for i in range(rows)])
    return Split("train", inputs, labels, marks), task, float(generator.uniform(0.1, 0.5))


def test_no_group_is_in_two_parts_and_no_class_leaves_training() -> None:
    refused = 0
    for seed in range(TABLES):
        split, task, share = table(seed)
        try:
            stays, drawn = hold_out_rows(split, task, share, seed)
        except DataError:
            refused += 1
            continue
        groups = split.marks.groups
        assert groups is not None
        assert not set(groups[stays]) & set(groups[drawn])
        assert sorted([*stays, *drawn]) == list(range(len(split)))
        assert len(drawn)
        if task.is_exclusive:
            assert set(split.labels[stays]) == set(split.labels)
        elif task.has_classes:
            assert ((split.labels[stays] > 0).any(0) == (split.labels > 0).any(0)).all()
    assert refused < TABLES / 20


def test_no_group_is_in_two_folds_and_every_fold_has_rows() -> None:
    for seed in range(TABLES):
        split, task, _ = table(seed)
        groups = split.marks.groups
        assert groups is not None
        count = min(len(np.unique(groups)), 2 + seed % 4)
        folds = folds_of(split, task, count, seed)
        assert folds is not None
        assert len({(group, fold) for group, fold in zip(groups, folds, strict=True)}) == len(set(groups))
        assert set(folds) == set(range(count))


def test_what_is_drawn_by_time_is_all_later_and_ties_are_not_parted() -> None:
    for seed in range(TABLES):
        split, task, share = table(seed, by_time=True)
        stays, drawn = hold_out_rows(split, task, share, seed)
        times = split.marks.times
        assert times is not None
        assert times[stays].max() < times[drawn].min()
        # No other cut between two times is nearer to the share.
        cuts = [(times >= cut).sum() for cut in np.unique(times)[1:]]
        assert abs(len(drawn) - share * len(times)) == pytest.approx(min(abs(cut - share * len(times)) for cut in cuts))


def test_groups_are_dealt_as_evenly_as_scikit_learn_deals_them() -> None:
    unevenness: list[list[float]] = [[], []]
    for seed in range(40):
        generator = np.random.default_rng(seed)
        groups = generator.integers(0, 40, 400)
        labels = (generator.random(400) < np.linspace(0.1, 0.9, 40)[groups]).astype(np.int64)
        split = Split("train", Texts([("x",)] * 400, [""] * 400), labels, Marks(groups=groups))
        theirs = np.empty(400, dtype=np.int64)
        for fold, (_, held) in enumerate(
            StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)
        ):
            theirs[held] = fold
        ours = deal(groups, traits_of(split, Task.SINGLE_LABEL), np.full(5, 0.2), seed)
        for folds, found in zip((ours, theirs), unevenness, strict=True):
            counts = np.array([[(labels[folds == f] == c).sum() for c in (0, 1)] for f in range(5)])
            found.append(float(counts.std(0).sum()))
    assert np.mean(unevenness[0]) <= np.mean(unevenness[1]) * 1.05


def test_small_groups_and_large_ones_are_tested_alike() -> None:
    sizes = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        groups = np.repeat(np.arange(50), generator.integers(1, 20, 50))
        labels = generator.integers(0, 2, len(groups))
        split = Split("train", Texts([("x",)] * len(groups), [""] * len(groups)), labels, Marks(groups=groups))
        _, drawn = hold_out_rows(split, Task.SINGLE_LABEL, 0.2, seed)
        sizes.append(len(drawn) / len(np.unique(groups[drawn])))
        assert len(drawn) == pytest.approx(0.2 * len(groups), rel=0.1)
    assert np.mean(sizes) == pytest.approx(10, abs=1)


# ── from a file ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write(folder: Path, name: str, rows: list[tuple[Any, ...]]) -> Path:
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "patient", "date"), *rows])
    return folder / name


ROWS = [(f"text {i}", "ab"[i % 2], f"p{i // 4}", f"2024-01-{1 + i // 3:02d}") for i in range(40)]


def loaded(file: Path, **columns: str) -> hftl.data.Data:
    return load_data(str(file), wants="text", label_columns=["label"], division=Division(**columns))


def test_what_was_done_is_said_and_the_columns_are_no_inputs(tmp_path: Path) -> None:
    data = loaded(write(tmp_path, "x.csv", ROWS), group="patient")
    assert "groups by column 'patient': train 8 groups, test 2 groups" in data.notes
    assert any("20% of 40 rows (8) set aside, groups whole, stratified, seed 0" in note for note in data.notes)
    assert data.identity["division"] == {"group": "patient"}
    data = loaded(tmp_path / "x.csv", time="date")
    assert any("(7) set aside, the newest" in note for note in data.notes)
    assert [data.test.inputs[0][0], data.test.inputs[-1][0]] == ["text 33", "text 39"]


@pytest.mark.parametrize("as_numbers", [False, True])
def test_dates_and_numbers_are_times(tmp_path: Path, as_numbers: bool) -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label", "patient", "date"])
    frame["date"] = pd.to_datetime(frame["date"])
    if as_numbers:
        frame["date"] = frame["date"].dt.day_of_year
    data = load_data(frame, wants="text", label_columns=["label"], division=Division(time="date"))
    assert [text for (text,) in data.test.inputs] == [f"text {i}" for i in range(33, 40)]


def test_dates_of_a_table_and_dates_in_text_are_on_one_scale(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS[:30], columns=["text", "label", "patient", "date"])
    # With a nanosecond, which no microsecond holds.
    frame["date"] = pd.to_datetime(frame["date"]) + pd.Timedelta(1, "ns")
    frame.to_parquet(tmp_path / "train.parquet")
    pd.DataFrame(ROWS[30:], columns=["text", "label", "patient", "date"]).to_parquet(tmp_path / "test.parquet")
    data = loaded(tmp_path, time="date")
    assert not [note for note in data.notes if note.startswith("LEAK: ")]
    assert data.train.marks.times is not None
    assert data.test.marks.times is not None
    assert data.test.marks.times.min() - data.train.marks.times.max() == pytest.approx(24 * 3600)


def test_spans_of_time_are_refused_in_one_line() -> None:
    frame = pd.DataFrame(ROWS, columns=["text", "label", "patient", "date"])
    frame["date"] = pd.to_timedelta(range(40), unit="h")
    with pytest.raises(DataError, match="the column 'date' holds spans of time") as refused:
        load_data(frame, wants="text", label_columns=["label"], division=Division(time="date"))
    assert "\n" not in str(refused.value)


def test_strata_and_folds_are_asked_of_training_rows_alone(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", ROWS)
    (tmp_path / "test.csv").write_text("text,label\nnever seen,a\n")
    assert loaded(tmp_path, stratify="patient").train.marks.strata is not None
    assert loaded(tmp_path, fold="patient").test.marks.folds is None
    with pytest.raises(DataError, match="no column 'patient'"):
        loaded(tmp_path, group="patient")


def broken(at: int, column: int, value: str) -> list[tuple[Any, ...]]:
    rows = [list(row) for row in ROWS]
    rows[at][column] = value
    return [tuple(row) for row in rows]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        (
            broken(6, 2, ""),
            {"group": "patient"},
            "x.csv row 7: the column 'patient', which is the gr.* is empty",
        ),
        (
            broken(6, 3, "7th of May"),
            {"time": "date"},
            "x.csv row 7: the column 'date' holds '7th of May', which is",
        ),
        (broken(6, 3, "03/04/2024"), {"time": "date"}, "write dates as 2024-01-31"),
        (
            [(t, y, "same", d) for t, y, _, d in ROWS],
            {"group": "patient"},
            "40 training rows are of one group .'same'",
        ),
        ([(t, y, p, "2024-01-01") for t, y, p, _ in ROWS], {"time": "date"}, "are of one time"),
        (ROWS, {"group": "patients"}, "no column 'patients' .did you mean 'patient'"),
        (ROWS, {"group": "patient", "time": "date"}, "time and group ask for different divisions"),
    ],
)
def test_what_cannot_divide_rows_is_one_line(tmp_path: Path, rows: list[Any], columns: Any, said: str) -> None:
    file = write(tmp_path, "x.csv", rows)
    with pytest.raises(DataError, match=said) as refused:
        loaded(file, **columns)
    assert "\n" not in str(refused.value)


def test_fewer_groups_than_folds_and_a_single_given_fold_are_refused(tmp_path: Path) -> None:
    data = loaded(write(tmp_path, "x.csv", ROWS), group="patient")
    with pytest.raises(DataError, match="8 groups of training rows are fewer than 9 folds: give --folds 8"):
        folds_of(data.train, data.task, 9, 0)
    one = loaded(write(tmp_path, "y.csv", [(t, y, "all", d) for t, y, _, d in ROWS]), fold="patient")
    with pytest.raises(DataError, match="all training rows are in one fold"):
        folds_of(one.train, one.task, 5, 0)


def test_given_splits_that_part_a_group_or_turn_time_round_are_called_a_leak(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", ROWS[:30])
    write(tmp_path, "test.csv", ROWS[28:])
    by_group, by_time = loaded(tmp_path, group="patient"), loaded(tmp_path, time="date")
    (leak,) = [note for note in by_group.notes if note.startswith("LEAK: ")]
    assert "1 group of 'patient' stand in train and in test (4 of 12 test rows), such as 'p7'" in leak
    (later,) = [note for note in by_time.notes if note.startswith("LEAK: ")]
    assert "3 training rows are not older, by 'date', than the first test row" in later


# ── in a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_keeps_groups_together_where_its_strength_is_chosen(cli: Cli, tmp_path: Path) -> None:
    backbone = save("bert", tmp_path / "bert")
    # Each patient's rows are one text: whoever parts a group in folds finds its own row again.
    generator = np.random.default_rng(0)
    rows = [
        (f"patient {p} said {p * 7}", "ab"[p % 2 if generator.random() < 0.5 else 0], f"p{p}", "") for p in range(40)
    ]
    write(tmp_path, "x.csv", [row for row in rows for _ in range(3)])
    run = ("run", "--backbone", backbone, "--data", tmp_path / "x.csv", "--input-columns", "text", "--no-report")
    cli.ok(*run, "--label-columns", "label", "--group", "patient", "--out", tmp_path / "one")
    cli.ok(*run, "--label-columns", "label", "--fold", "patient", "--test-size", "0.3", "--out", tmp_path / "two")
    by_group, by_fold = (json.loads((tmp_path / name / "metrics.json").read_text())["head"] for name in ("one", "two"))
    assert by_group["chosen_on"] == "5 folds"
    assert by_fold["chosen_on"] == "38 folds"  # two patients have no row outside the test split
    record = json.loads((tmp_path / "one/recipe.json").read_text())
    assert record["recipe"]["group"] == "patient"
    assert any(note.startswith("groups by column 'patient': train 32 groups") for note in record["data"]["notes"])
    refused = cli.refused(
        *run, "--label-columns", "label", "--group", "patient", "--folds", "60", "--out", tmp_path / "three"
    )
    assert "are fewer than 60 folds" in refused


def test_sentences_whose_words_have_labels_are_divided_by_group_and_stratum(tmp_path: Path) -> None:
    tags = (["B-PER", "O"], ["O", "B-LOC"], ["O", "O"])
    rows = [{"tokens": ["a", "b"], "tags": tags[i % 3], "patient": f"p{i % 6}"} for i in range(36)]
    path = tmp_path / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load_data(str(path), wants="text", division=Division(group="patient"))
    train, test = (set(split.marks.groups.tolist()) for split in (data.train, data.test))
    assert train
    assert test
    assert not train & test
    assert {int(tag) for row in data.train.labels for tag in row} == {0, 1, 2}
    by_stratum = load_data(str(path), wants="text", division=Division(stratify="patient"), test_size=1 / 6)
    assert np.bincount(by_stratum.test.marks.strata).tolist() == [1] * 6

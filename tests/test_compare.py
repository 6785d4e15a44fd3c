"""`hftl compare`: runs on the same test rows, against the paired bootstrap done by hand and scikit-learn's scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from run_folders import HOSTILE, classifier, write_run
from runs import Cli
from sklearn.metrics import average_precision_score, f1_score, r2_score

import hftl
from hftl.errors import HftlError, UserError
from hftl.methods import Full, Head
from hftl.recipes import Recipe
from hftl.report.comparison import compare
from hftl.tasks import Task

ROWS = 400
DRAWS = 1500


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Classifiers of three classes that are right about 80, 81 and 95 times of 100, on the same rows."""
    made = []
    for name, right, seed in (("a", 0.7, 1), ("b", 0.71, 2), ("c", 0.93, 3)):
        labels, scores = classifier(ROWS, 3, right, seed)
        made.append(write_run(tmp_path / name, labels=labels, scores=scores, names=("x", "y", "z")))
    return made


def by_hand(measure, first: np.ndarray, other: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Difference and percentile interval of a paired bootstrap over rows, one resample after the other."""
    rng = np.random.default_rng(99)
    drawn = []
    for _ in range(DRAWS):
        rows = rng.integers(0, len(labels), len(labels))
        drawn.append(measure(labels[rows], other[rows]) - measure(labels[rows], first[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return measure(labels, other) - measure(labels, first), float(low), float(high)


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    return float((scores.argmax(1) == labels).mean())


def f1(member: np.ndarray, named: np.ndarray) -> float:
    return float(2 * (member & named).sum() / (member.sum() + named.sum()))


def mean_average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Of scores that are all different, or rows that stand several times: the mean of precision at each hit."""
    values = []
    for k in range(labels.shape[1]):
        truth = labels[np.argsort(-scores[:, k], kind="stable"), k] > 0
        ordered = np.sort(-scores[:, k])
        # Rows of one score enter together.
        last = np.append(np.flatnonzero(np.diff(ordered)), len(truth) - 1)
        hits = np.cumsum(truth)[last]
        values.append(float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / truth.sum()))
    return float(np.mean(values))


def r2(targets: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(1 - ((predicted - targets) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)))


def test_differences_are_those_of_a_paired_bootstrap(three: list[Path]):
    found = compare(three)
    labels = classifier(ROWS, 3, 0.7, 1)[0]
    scores = [classifier(ROWS, 3, right, seed)[1] for right, seed in ((0.7, 1), (0.71, 2), (0.93, 3))]
    assert [run.score.value for run in found.runs] == [accuracy(labels, each) for each in scores]
    assert found.runs[0].against_first is None
    for run, each in zip(found.runs[1:], scores[1:], strict=True):
        value, low, high = by_hand(accuracy, scores[0], each, labels)
        assert run.against_first.value == pytest.approx(value)
        assert run.against_first.low == pytest.approx(low, abs=0.008)
        assert run.against_first.high == pytest.approx(high, abs=0.008)
        right, before = each.argmax(1) == labels, scores[0].argmax(1) == labels
        assert (run.only_it, run.only_first) == ((right & ~before).sum(), (before & ~right).sum())
        # Paired: what both get right or wrong says nothing of the difference.
        assert high - low < (run.score.high - run.score.low) + (found.runs[0].score.high - found.runs[0].score.low)
    assert [run.verdict for run in found.runs] == ["", "the same within noise", "better"]
    assert compare([three[2], three[0]]).runs[1].verdict == "worse"


def test_each_class_is_compared_by_its_f1(three: list[Path]):
    found = compare(three)
    labels = classifier(ROWS, 3, 0.7, 1)[0]
    scores = [classifier(ROWS, 3, right, seed)[1] for right, seed in ((0.7, 1), (0.71, 2), (0.93, 3))]
    assert sorted(each.name for each in found.outputs) == ["x", "y", "z"]
    for each in found.outputs:
        k = ["x", "y", "z"].index(each.name)
        expected = [f1_score(labels == k, one.argmax(1) == k) for one in scores]
        assert each.scores == pytest.approx(expected)
        assert each.rows == (labels == k).sum()
        value, low, high = by_hand(lambda y, s, k=k: f1(y == k, s.argmax(1) == k), scores[0], scores[2], labels)
        assert (each.against_first[1].value, each.against_first[1].low) == pytest.approx((value, low), abs=0.012)
        assert each.against_first[1].high == pytest.approx(high, abs=0.012)


def test_few_rows_never_tell_two_runs_apart(tmp_path: Path):
    """All rows of a small class fall one way in every bootstrap sample; by chance they do so too."""
    labels = np.array([0] * 100 + [1] * 100 + [2] * 3 + [3] * 12)
    first = np.eye(4)[labels] * 0.8 + 0.05
    other = first.copy()
    other[labels >= 2] = first[0]
    names = ("a", "b", "rare", "less rare")
    runs_ = [write_run(tmp_path / n, labels=labels, scores=s, names=names) for n, s in (("a", first), ("b", other))]
    found = {each.name: each.against_first[0] for each in compare(runs_).outputs}
    assert (found["rare"].value, found["less rare"].value) == (-1, -1)
    # Of eight ways in which three rows may speak for one run or the other, two say the same as these.
    assert found["rare"].p >= 2 / 8
    assert found["less rare"].p < 0.05

    labels, scores = np.arange(60) % 2, np.eye(2)[np.arange(60) % 2] * 0.8 + 0.1
    for wrong, verdict in ((5, "the same within noise"), (6, "worse")):
        worse = scores.copy()
        worse[:wrong] = worse[:wrong, ::-1]
        pair = [write_run(tmp_path / f"{wrong}{n}", labels=labels, scores=s) for n, s in (("a", scores), ("b", worse))]
        # An exact test of McNemar's gives 1/16 for five rows and 1/32 for six.
        assert compare(pair).runs[1].verdict == verdict


def test_p_values_are_adjusted_for_all_runs_that_are_compared(three: list[Path], tmp_path: Path):
    alone = compare([three[0], three[2]]).runs[1].against_first.p
    labels, scores = classifier(ROWS, 3, 0.7, 1)
    copies = [write_run(tmp_path / f"{i}", labels=labels, scores=scores, names=("x", "y", "z")) for i in range(3)]
    together = compare([three[0], three[2], *copies]).runs
    # Holm: the smallest of four is multiplied by four, and what is equal stays at one.
    assert together[1].against_first.p == pytest.approx(4 * alone)
    assert [run.against_first.p for run in together[2:]] == [1, 1, 1]
    assert together[2].verdict == "the same within noise"


def test_several_labels_and_regressions_are_compared_by_their_metric(tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = (rng.random((ROWS, 3)) < 0.3).astype(np.float32)
    names = ("x", "y", "z")
    scores = [1 / (1 + np.exp(-(2 * labels - 1 + rng.normal(0, s, labels.shape)))) for s in (1.0, 2.0)]
    made = [
        write_run(tmp_path / f"m{i}", labels=labels, scores=each, task=Task.MULTI_LABEL, names=names)
        for i, each in enumerate(scores)
    ]
    found = compare(made)
    scores = [each.astype(np.float32) for each in scores]
    assert found.metric == "map"
    assert [run.score.value for run in found.runs] == pytest.approx(
        [average_precision_score(labels, each) for each in scores]
    )
    value, low, high = by_hand(mean_average_precision, scores[0], scores[1], labels)
    gain = found.runs[1].against_first
    assert (gain.value, gain.low, gain.high) == pytest.approx((value, low, high), abs=0.01)
    assert {each.name: each.rows for each in found.outputs} == dict(zip(names, labels.sum(0), strict=True))
    assert found.runs[1].only_it is None

    targets = rng.normal(size=(ROWS, 2)).astype(np.float32)
    predicted = [(targets + rng.normal(0, s, targets.shape)).astype(np.float32) for s in (0.3, 0.6)]
    made = [
        write_run(tmp_path / f"r{i}", labels=targets, scores=each, task=Task.REGRESSION, names=("v", "a"))
        for i, each in enumerate(predicted)
    ]
    found = compare(made)
    assert [run.score.value for run in found.runs] == pytest.approx([r2_score(targets, each) for each in predicted])
    value, low, high = by_hand(r2, predicted[0], predicted[1], targets)
    gain = found.runs[1].against_first
    assert (gain.value, gain.low, gain.high) == pytest.approx((value, low, high), abs=0.02)
    assert found.runs[1].verdict == "worse"
    furthest = np.abs(predicted[0] - predicted[1]) / 2 / targets.std(0)
    assert found.disagreements[0].row == f"row {furthest.sum(1).argmax()}"


def test_rows_are_matched_by_name_and_classes_too(tmp_path: Path):
    labels, scores = classifier(ROWS, 3, 0.7, 1)
    _, better = classifier(ROWS, 3, 0.9, 2)
    names = np.array([f"photo {i}.png" for i in range(ROWS)])
    order, classes = np.random.default_rng(5).permutation(ROWS), np.array([2, 0, 1])
    first = write_run(tmp_path / "a", labels=labels, scores=scores, names=("x", "y", "z"), rows=names)
    same = write_run(tmp_path / "b", labels=labels, scores=better, names=("x", "y", "z"), rows=names)
    moved = write_run(
        tmp_path / "c",
        labels=np.argsort(classes)[labels][order],
        scores=better[:, classes][order],
        names=("z", "x", "y"),
        rows=names[order],
    )
    expected, found = compare([first, same]), compare([first, moved])
    assert found.runs[1].score == expected.runs[1].score
    assert found.runs[1].against_first == expected.runs[1].against_first
    assert found.outputs == expected.outputs
    assert found.disagreements == expected.disagreements


def test_runs_that_share_some_rows_are_compared_on_these_and_it_is_said(tmp_path: Path, cli: Cli):
    labels, scores = classifier(ROWS, 3, 0.7, 1)
    _, better = classifier(ROWS, 3, 0.9, 2)
    rows = [f"r{i}" for i in range(ROWS)]
    names = ("x", "y", "z")
    write_run(tmp_path / "a", labels=labels[:300], scores=scores[:300], names=names, rows=rows[:300])
    write_run(tmp_path / "b", labels=labels[100:], scores=better[100:], names=names, rows=rows[100:])
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.rows == 200
    assert found.runs[0].score.value == accuracy(labels[100:300], scores[100:300])
    assert found.runs[1].score.value == accuracy(labels[100:300], better[100:300])
    assert [note.split(" was ")[1][:18] for note in found.notes] == ["tested on 100 rows"] * 2
    assert "accuracy on 200 rows" in cli.ok("compare", "a", "b")


def test_what_cannot_be_compared_is_refused_with_the_reason(tmp_path: Path, cli: Cli):
    labels, scores = classifier(50, 3, 0.7, 1)
    names = ("x", "y", "z")
    write_run(tmp_path / "a", labels=labels, scores=scores, names=names)
    write_run(tmp_path / "classes", labels=labels, scores=scores, names=("x", "y", "w"))
    write_run(tmp_path / "labels", labels=(labels + (np.arange(50) == 7)) % 3, scores=scores, names=names)
    write_run(tmp_path / "rows", labels=labels, scores=scores, names=names, rows=[f"other {i}" for i in range(50)])
    write_run(tmp_path / "twice", labels=labels, scores=scores, names=names, rows=["row 1"] * 50)
    write_run(
        tmp_path / "task",
        labels=np.eye(3)[labels].astype(np.float32),
        scores=scores,
        names=names,
        task=Task.MULTI_LABEL,
    )
    (write_run(tmp_path / "open", labels=labels, scores=scores, names=names) / "metrics.json").unlink()
    for other, why in {
        "classes": "only one of them knows 'w', 'z'",
        "labels": "1 of 50 test rows have other labels, such as row 7",
        "rows": "share no test row",
        "twice": "cannot be told apart",
        "task": "its task is multi label, not single label",
        "open": "not finished",
        "nowhere": "no folder 'nowhere'",
    }.items():
        assert why in cli.refused("compare", "a", other), other
    assert "give two or more" in cli.refused("compare", "a")
    with pytest.raises(UserError, match="give two or more"):
        compare([tmp_path / "a"])


@pytest.mark.parametrize("content", [b"", b"PAR1nonsense", None])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes | None, three: list[Path]):
    path = three[1] / "predictions.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(HftlError, match=r"b/predictions\.parquet"):
        compare(three)


def test_only_fields_that_differ_are_listed(tmp_path: Path):
    labels, scores = classifier(50, 2, 0.7, 1)
    recipes = [
        Recipe(backbone="hftl/glyph-vit-tiny", data="photos", method=Head()),
        Recipe(backbone="hftl/glyph-vit-tiny", data="photos", method=Head(folds=7), seed=3, memory="4G"),
        Recipe(backbone="facebook/dinov2-small", data="photos", method=Full(lr=1e-5)),
    ]
    made = [write_run(tmp_path / f"{i}", labels=labels, scores=scores, recipe=each) for i, each in enumerate(recipes)]
    record = json.loads((made[1] / "recipe.json").read_text())
    record["versions"]["torch"] = "2.8"
    # As a release without the field wrote it.
    del record["recipe"]["coverage"]
    (made[1] / "recipe.json").write_text(json.dumps(record))
    found = {each.field: each.values for each in compare(made).changes}
    assert found == {
        "backbone": ["hftl/glyph-vit-tiny", "hftl/glyph-vit-tiny", "facebook/dinov2-small"],
        "seed": [0, 3, 0],
        "method": ["head", "head", "full"],
        # Epochs and the rest of full fine-tuning have their defaults, of which its name says enough.
        "method.folds": [5, 7, "–"],
        "method.lr": ["–", "–", 1e-5],
        "version of torch": ["2.9", "2.8", "2.9"],
    }
    assert compare([made[0], made[0]]).changes == []


def test_other_data_of_the_same_names_are_said(tmp_path: Path):
    labels, scores = classifier(50, 2, 0.7, 1)
    for name in ("one", "other"):
        write_run(tmp_path / name, labels=labels, scores=scores, recipe=Recipe(backbone="x", data=name))
    (note,) = compare([tmp_path / "one", tmp_path / "other"]).notes
    assert "of the data other, not one" in note


def test_a_report_that_its_predictions_do_not_bear_out_is_said(three: list[Path]):
    metrics = runs.metrics(three[1])
    metrics["eval"]["accuracy"] = 0.99
    (three[1] / "metrics.json").write_text(json.dumps(metrics))
    (note,) = compare(three).notes
    assert "reported accuracy 0.9900, and its predictions give 0.8" in note


def test_the_rows_of_the_greatest_disagreement_come_first(three: list[Path]):
    found = compare(three)
    scores = np.stack([classifier(ROWS, 3, right, seed)[1] for right, seed in ((0.7, 1), (0.71, 2), (0.93, 3))])
    said = scores.argmax(2)
    differ = (said != said[0]).any(0)
    assert found.disagreeing == differ.sum()
    distance = np.abs(scores - scores.mean(0)).mean(0).sum(1) * differ
    expected = [f"row {i}" for i in np.argsort(-distance, kind="stable")[:50]]
    assert [each.row for each in found.disagreements] == expected
    row = int(found.disagreements[0].row.split()[1])
    assert found.disagreements[0].predictions == [["x", "y", "z"][k] for k in said[:, row]]
    assert found.disagreements[0].sure == pytest.approx(scores[:, row].max(1).tolist())


def test_python_terminal_and_json_say_the_same_of_real_runs(cli: Cli, tmp_path: Path):
    tiny.save("vit", tmp_path / "vit")
    runs.write_images(tmp_path / "photos", per_class=12)
    (tmp_path / "r.py").write_text(
        "from hftl import Head, Recipe, recipe\n\n@recipe\ndef mine() -> Recipe:\n"
        "    return Recipe(backbone='./vit', data='photos', method=Head(folds=2))\n"
    )
    cli.ok("run", "r.py", "--out", "a")
    cli.ok("run", "r.py", "--out", "b", "--depth", "1")
    found = hftl.compare(["a", Path("b")])
    assert found.as_json() == json.loads(cli.ok("compare", "a", "b", "--json"))
    assert [run.score.value for run in found.runs] == [runs.metrics(Path(n))["eval"]["accuracy"] for n in "ab"]
    assert [each.field for each in found.changes] == ["depth"]
    cost = found.runs[1].cost
    assert cost.seconds == runs.metrics(Path("b"))["seconds"]
    assert (cost.computed, cost.reused) == (36, 0)
    shown = cli.ok("compare", "a", "b")
    assert str(found.runs[1].score) in shown
    assert "2 is the same within noise as 1" in shown


def test_hostile_names_do_nothing(cli: Cli, tmp_path: Path):
    count = len(HOSTILE)
    labels, scores = classifier(4 * count, count, 0.5, 1)
    _, other = classifier(4 * count, count, 0.9, 2)
    rows = [f"{i} {HOSTILE[i % count]}" for i in range(4 * count)]
    folders = [tmp_path / f"{n}{HOSTILE[20]}{HOSTILE[1].replace('/', '_')}" for n in "ab"]
    for folder, said, text in zip(folders, (scores, other), (HOSTILE[0], HOSTILE[21]), strict=True):
        recipe = Recipe(backbone=text, data=text)
        write_run(folder, labels=labels, scores=said, names=HOSTILE, rows=rows, recipe=recipe, name=text)
    for arguments in ([], ["--json"]):
        out = cli.ok("compare", *folders, *arguments)
        assert [c for c in out if not (c.isprintable() or c in "\n\u200c\u200d")] == []
    assert {each["name"] for each in json.loads(out)["outputs"]} == set(HOSTILE)

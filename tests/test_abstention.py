"""A model that may abstain, and a label that is none of the classes, held to brute force and to scikit-learn."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import runs
import tiny
import torch
from runs import Cli, metrics, predictions
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from test_run import write_recipe
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hftl
from hftl.frozen.outside import auroc, logit_scores, neighbour_distance, told_apart
from hftl.heads.abstention import abstention_report, answering_threshold
from hftl.heads.linear import fit_linear
from hftl.methods import Aim
from hftl.scored import answered_scores

# In the tiny tokenizer's words.
WORDS = {"cat": ["cat", "sat", "mat", "rug"], "dog": ["dog", "ran", "hill", "tree"], "oos": ["bird", "flew", "over"]}
COMMON = ["a", "the", "one", "two", "red", "blue", "is", "was"]


def write_rows(path: Path, rows: int, *, outside: int = 0, seed: int = 0) -> Path:
    """Texts of cats and dogs, three in ten of no telling, and others of neither."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for number in range(rows):
            label = ("cat", "dog")[number % 2]
            own = [] if rng.random() < 0.3 else rng.choice(WORDS[label], 2).tolist()
            table.writerow([" ".join([*own, *rng.choice(COMMON, 4).tolist(), str(number)]), label])
        for number in range(outside):
            table.writerow([" ".join([*rng.choice(WORDS["oos"], 5).tolist(), str(number)]), "oos"])
    return path


def rows_in(path: Path) -> list[list[str]]:
    """Text and label of each row that `write_rows` wrote."""
    return list(csv.reader(path.read_text().splitlines()))[1:]


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    return tiny.save("bert", tmp_path / "backbone")


# ── the threshold ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("coverage", [0.01, 0.29, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_the_largest_that_answers_as_many_rows_as_asked(coverage: float, ties: bool) -> None:
    top = torch.rand(100, generator=torch.Generator().manual_seed(1))
    if ties:
        top = (top * 5).round() / 5

    threshold = answering_threshold(top, coverage)

    answered = (top.double() >= threshold).sum()
    # Brute force: of all cuts those that answer enough, the one that answers least.
    enough = [n for cut in top.tolist() if (n := int((top >= cut).sum())) >= coverage * 100 - 1e-9]
    assert answered == min(enough)


def test_rows_that_cannot_be_parted_are_all_answered() -> None:
    assert answering_threshold(torch.ones(7), 0.5) == 0.0
    report = abstention_report(torch.eye(3) * 9, torch.arange(3), 0.5)
    assert (report["abstain_below"], report["abstention"]["coverage"]) == (0.0, 1.0)


def test_a_head_chooses_it_on_rows_of_its_folds_after_calibration() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 300))
    features = torch.from_numpy(rng.normal(0, 1, (300, 8)) + np.eye(3, 8)[labels] * 1.5).float()

    for calibrate, strengths in ((True, None), (False, [1.0])):
        aim = Aim("coverage", 0.8)
        fit = fit_linear(
            features, labels, task="single_label", num_labels=3, aim=aim, calibrate=calibrate, strengths=strengths
        )
        assert fit.held_out is not None
        top, predicted = fit.held_out.logits.softmax(1).max(1)
        answered = top >= fit.report["abstain_below"]
        assert int(answered.sum()) == 240
        found = fit.report["abstention"]
        assert found["accuracy"] == pytest.approx(float((predicted == labels[fit.held_out.rows]).double().mean()))
        assert found["accuracy_answered"] > found["accuracy"] + 0.03


def test_intervals_of_what_is_answered_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = {"accuracy_answered": 0, "coverage": 0}
    for _ in range(200):
        sure = rng.random(150) < 0.8
        right = rng.random(150) < np.where(sure, 0.9, 0.4)
        scores = np.where(sure, 0.95, 0.6)[:, None] * [[1, 0]] + np.where(sure, 0.05, 0.4)[:, None] * [[0, 1]]
        found = answered_scores(scores.astype(np.float32), (~right).astype(np.int64), 0.7)
        for name, truth in (("accuracy_answered", 0.9), ("coverage", 0.8)):
            interval = found[name]
            assert interval is not None
            held[name] += interval.low <= truth <= interval.high
    # 95 % of 200, within what chance makes of them.
    low, high = binom.interval(0.999, 200, 0.95)
    assert all(low <= count <= high for count in held.values()), held


def test_groups_make_wider_intervals_and_nothing_answered_has_no_accuracy() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    scores = np.where(np.repeat(rng.random(20) < 0.7, 10)[:, None], [[0.9, 0.1]], [[0.55, 0.45]]).astype(np.float32)
    labels = rng.integers(0, 2, 200)
    alone, grouped = answered_scores(scores, labels, 0.7), answered_scores(scores, labels, 0.7, groups=groups)
    width = [each["coverage"].high - each["coverage"].low for each in (alone, grouped) if each["coverage"]]
    assert width[1] > 2 * width[0]
    nothing = answered_scores(scores, labels, 0.99)
    assert nothing["accuracy_answered"] is None
    assert nothing["coverage"] is not None
    assert nothing["coverage"].value == 0


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_abstains_where_it_is_asked_to_and_says_what_that_gives(cli: Cli, backbone: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.csv", 240)
    out = cli.ok("run", write_recipe(tmp_path, backbone, data), "--coverage", "0.7", "--out", "run", "--report")

    found, config = metrics(Path("run")), json.loads(Path("run/model/config.json").read_text())
    below, mine = config["abstain_below"], predictions(Path("run"))
    assert below == found["head"]["abstain_below"] > 0.5
    assert found["head"]["abstention"]["coverage"] == pytest.approx(0.7, abs=0.01)
    answered = np.array([max(row) >= below for row in mine["scores"]])
    right = np.array(mine["label"]) == np.array(mine["prediction"])
    assert found["eval"]["coverage"] == pytest.approx(answered.mean())
    assert found["eval"]["accuracy_answered"] == pytest.approx(right[answered].mean())
    assert mine["abstains"] == (~answered).tolist()
    low, high = found["intervals"]["of"]["coverage"]
    assert low < found["eval"]["coverage"] < high
    assert "accuracy_answered" in found["intervals"]["of"]
    card, page = Path("run/model/README.md").read_text(), Path("run/report.html").read_text()
    for text in (out, card, page):
        assert f"{found['eval']['accuracy_answered']:.4f}" in text
    assert f"{below:.4f}" in card
    assert "always answers" not in card
    assert "the model abstains where the score is below" in out

    # Each form of an answer says it, and keeps the score.
    rows = [json.loads(line) for line in cli.ok("predict", "run", data, "--json").splitlines()]
    assert [row["abstains"] for row in rows] == [row["score"] < below for row in rows]
    assert all((row["label"] is None) == row["abstains"] for row in rows)
    assert {row["abstains"] for row in rows} == {True, False}
    cli.ok("predict", "run", data, "--out", "said.csv", "--top-k", "1")
    cli.ok("predict", "run", data, "--out", "said.parquet")
    table = list(csv.DictReader(Path("said.csv").read_text().splitlines()))
    assert [row["abstains"] for row in table] == [json.dumps(row["abstains"]) for row in rows]
    assert all((row["label"] == "") == (row["abstains"] == "true") and row["label_1"] for row in table)
    assert pq.read_table("said.parquet").column("abstains").to_pylist() == [row["abstains"] for row in rows]
    first = next(i for i, row in enumerate(rows) if row["abstains"])
    text = rows_in(data)[first][0]
    assert "abstains" in cli.ok("predict", "run", text)
    assert "abstains" in cli.ok("predict", "run", text, "--top-k", "2")

    # Elsewhere the model measures itself as the run did, and without hftl answers always.
    again = json.loads(cli.ok("evaluate", "run", "--data", data, "--split", "train", "--json"))
    every = hftl.load("run").predict([row[0] for row in rows_in(data)])
    assert isinstance(every, list)
    assert again["coverage"] == pytest.approx(np.mean([not row["abstains"] for row in every]))
    assert set(again["intervals"]) == {"accuracy_answered", "coverage"}
    assert "95 % interval" in cli.ok("evaluate", "run", "--data", data, "--split", "train")


def test_fine_tuning_chooses_it_on_the_validation_split(cli: Cli, backbone: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.csv", 120, outside=20)
    recipe = write_recipe(tmp_path, backbone, data)
    tune = ["--method", "partial", "--freeze", "1", "--cache-blocks", "always", "--epochs", "1", "--coverage", "0.75"]
    assert "--validation-size" in cli.refused("run", recipe, *tune, "--out", "no", "--out-of-scope", "oos")

    cli.ok("run", recipe, *tune, "--validation-size", "0.25", "--out", "run", "--out-of-scope", "oos")

    found = metrics(Path("run"))
    asked = found["finetune"]["abstention"]
    assert asked["coverage"] == pytest.approx(np.ceil(0.75 * asked["rows"]) / asked["rows"])
    assert json.loads(Path("run/model/config.json").read_text())["abstain_below"] == found["finetune"]["abstain_below"]
    # The trained model is asked about rows out of scope; the space of the frozen features it has left.
    assert set(found["out_of_scope"]["auroc"]) == {"energy", "top_probability"}
    assert found["out_of_scope"]["rows"] == 20
    assert found["out_of_scope"]["auroc"] == pytest.approx(by_hand(Path("run"), data), abs=1e-3)


def by_hand(run: Path, data: Path) -> dict[str, float]:
    """AUROC of energy and of the top probability by plain transformers and scikit-learn."""
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    rows = rows_in(data)
    tested = [int(name.rpartition(" ")[2]) - 1 for name in predictions(run)["row"]]
    outside = [i for i, row in enumerate(rows) if row[1] == "oos"]
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(rows[i][0], return_tensors="pt")).logits for i in [*tested, *outside]])
    truth = [0] * len(tested) + [1] * len(outside)
    energy, top = -torch.logsumexp(logits.double(), 1), logits.double().softmax(1).max(1).values
    return {"energy": roc_auc_score(truth, energy), "top_probability": roc_auc_score(truth, -top)}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--coverage", "1"], "less than 1"),
        (["--coverage", "0"], "greater than 0"),
        (["--coverage", "0.9", "--at-recall", "0.9"], "give one"),
        (["--coverage", "0.9", "--cv", "2"], "--cv"),
        (["--out-of-scope", "oos", "--cv", "2"], "--cv"),
        (["--out-of-scope", "oso"], "no row has the label 'oso' (did you mean 'oos'?)"),
        (["--task", "multi_label", "--coverage", "0.9"], "one label a row"),
        (["--task", "multi_label", "--out-of-scope", "oos"], "one label a row"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    cli: Cli, backbone: Path, tmp_path: Path, changed: list[str], told: str
) -> None:
    data = write_rows(tmp_path / "rows.csv", 20, outside=6)
    assert told in cli.refused("run", write_recipe(tmp_path, backbone, data), *changed, "--out", "no")


def test_numbers_and_tagged_words_have_no_label_out_of_scope(cli: Cli, backbone: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("text,label\n" + "".join(f"row {i},{i / 7}\n" for i in range(30)))
    words = runs.write_sentences(tmp_path / "words.jsonl", 30)
    for data in (numbers, words):
        line = cli.refused("run", write_recipe(tmp_path, backbone, data), "--out-of-scope", "O", "--out", "no")
        assert "one label a row" in line


# ── out of scope ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    write_rows(folder / "train.csv", 120, outside=10, seed=1)
    write_rows(folder / "validation.csv", 40, outside=9, seed=2)
    write_rows(folder / "test.csv", 60, outside=25, seed=3)
    return folder


def test_a_label_out_of_scope_is_no_class_and_measures_scores(
    cli: Cli, backbone: Path, parts: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, backbone, parts)
    out = cli.ok("run", recipe, "--out-of-scope", "oos", "--coverage", "0.8", "--out", "run", "--report")

    found, mine = metrics(Path("run")), predictions(Path("run"))
    assert list(found["eval"]["per_class"]) == ["cat", "dog"]
    assert (found["rows"]["train"], found["rows"]["validation"], found["rows"]["test"]) == (120, 40, 60)
    assert "25 rows with it measure" in out
    assert "19 others left out" in out
    assert set(mine["label"]) == {"cat", "dog"}
    scope = found["out_of_scope"]
    assert (scope["rows"], scope["against"]) == (25, 60)
    # By the exported model, scikit-learn, and its nearest neighbours.
    model = AutoModelForSequenceClassification.from_pretrained("run/model").eval()
    tokenizer = AutoTokenizer.from_pretrained("run/model")

    def of(name: str) -> tuple[list[str], np.ndarray]:
        rows = rows_in(parts / name)
        return [row[0] for row in rows], np.array([row[1] == "oos" for row in rows])

    def asked(texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([model(**tokenizer(each, return_tensors="pt")).logits for each in texts]).double()

    texts, is_outside = of("test.csv")
    logits = asked(texts)
    assert scope["auroc"]["energy"] == pytest.approx(roc_auc_score(is_outside, -logits.logsumexp(1)), abs=1e-3)
    top = logits.softmax(1).max(1).values.numpy()
    assert scope["auroc"]["top_probability"] == pytest.approx(roc_auc_score(is_outside, -top), abs=1e-3)
    assert scope["abstains"] == pytest.approx((top[is_outside] < found["head"]["abstain_below"]).mean(), abs=0.05)
    features = hftl.features(hftl.Recipe(backbone=str(backbone), data=str(parts), max_length=None))
    known, labels = features.of("train")
    train = known[labels != features.label_names.index("oos")]
    test, _ = features.of("test")
    mean = train.mean(0)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (train - mean, test - mean)]
    distance = NearestNeighbors(n_neighbors=1, metric="cosine").fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    assert scope["auroc"]["distance"] == pytest.approx(roc_auc_score(is_outside, distance), abs=1e-3)
    for name, value in scope["auroc"].items():
        low, high = scope["intervals"][name]
        assert low <= value <= high
        for text in (out, Path("run/model/README.md").read_text(), Path("run/report.html").read_text()):
            assert f"AUROC of {name.replace('_', ' ')}" in text

    # Whoever evaluates the run on the same data leaves these rows out too, and says so.
    again = json.loads(cli.ok("evaluate", "run", "--data", parts, "--json"))
    assert again["accuracy"] == pytest.approx(found["eval"]["accuracy"])
    assert "dropped 25 rows labelled 'oos' (out of scope)" in cli.err


def test_where_test_rows_are_drawn_all_rows_of_the_label_are_measured(cli: Cli, backbone: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.csv", 60, outside=12)
    recipe = write_recipe(tmp_path, backbone, data)
    cli.ok("run", recipe, "--out-of-scope", "oos", "--out", "run", "--limit", "30")
    found = metrics(Path("run"))
    assert (found["out_of_scope"]["rows"], found["rows"]) == (12, {"train": 30, "test": 12})
    few = cli.ok("run", recipe, "--out-of-scope", "oos", "--out", "few", "--limit", "10")
    assert "out_of_scope 10 of 12" in few
    assert metrics(Path("few"))["out_of_scope"]["rows"] == 10


def test_a_split_that_is_reported_on_needs_rows_of_the_label(
    cli: Cli, backbone: Path, parts: Path, tmp_path: Path
) -> None:
    write_rows(parts / "test.csv", 30)
    recipe = write_recipe(tmp_path, backbone, parts)
    line = cli.refused("run", recipe, "--out-of-scope", "oos", "--out", "no")
    assert "no row of the test split has the label 'oos' (train 10, validation 9)" in line
    write_rows(parts / "test.csv", 0, outside=5)
    assert "every row of the test split" in cli.refused("run", recipe, "--out-of-scope", "oos", "--out", "no")


def samples(rng: np.random.Generator, rows: int, others: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for _ in range(20):
        drawn = rng.integers(0, rows + others, rows + others)
        times = np.bincount(drawn, minlength=rows + others)
        yield times[:rows], times[rows:]


def test_auroc_on_samples_is_that_of_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(0)
    outside, inside = rng.integers(0, 6, 30) + 1.0, rng.integers(0, 5, 50) * 1.0
    for one, other in samples(rng, 30, 50):
        scores = np.concatenate([np.repeat(outside, one), np.repeat(inside, other)])
        truth = [1] * int(one.sum()) + [0] * int(other.sum())
        mine = auroc(outside, inside, one[None].astype(float), other[None].astype(float))
        assert mine[0] == pytest.approx(roc_auc_score(truth, scores))
    assert np.isnan(auroc(outside, inside, np.zeros((1, 30)), np.ones((1, 50)))[0])


def test_intervals_of_an_auroc_hold_the_truth_and_a_perfect_one_is_not_sure() -> None:
    from scipy.stats import norm

    rng, held = np.random.default_rng(0), 0
    for seed in range(60):
        outside, inside = {"x": rng.normal(1, 1, 40)}, {"x": rng.normal(0, 1, 80)}
        found = told_apart(outside, inside, seed=seed)["x"]
        held += found.low <= norm.cdf(1 / np.sqrt(2)) <= found.high
    assert held >= 51
    perfect = told_apart({"x": np.arange(9) + 9.0}, {"x": np.arange(9) * 1.0}, seed=0)["x"]
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low < 0.8


def test_scores_of_logits_are_larger_for_what_is_rather_out_of_scope() -> None:
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.0, 0.0]])
    one, other = logit_scores(sure), logit_scores(unsure)
    assert all(other[name] > one[name] for name in ("energy", "top_probability"))
    assert one["energy"][0] == pytest.approx(-np.log(np.exp(9) + 2))
    few = torch.eye(3)
    near: Any = neighbour_distance(few, few)
    assert near.shape == (3,)

"""The scout's commands, as a user gives them: on real digits, on tiny models, and on data built to a known answer."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from runs import RECIPES, Cli, write_texts
from safetensors.torch import load_file, save_file

import hftl
from hftl.backbones.loading import load_backbone
from hftl.criterion import Criterion
from hftl.data import Data, Texts
from hftl.data.dataset import Split
from hftl.data.marks import Marks
from hftl.extraction import missing_features
from hftl.frozen.budget import keep_remembered
from hftl.frozen.view import View, open_space
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions
from hftl.scout.cost import count_lacking, first_pass
from hftl.scout.curve import _measured as measured_sizes
from hftl.scout.stored import TrainingRows, reading
from hftl.scout.transfer import transfer
from hftl.store.store import FeatureStore, cache_root
from hftl.tasks import Task

DIGITS = RECIPES / "digits.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("bert", "roberta", "distilbert"):
        tiny.save(name, folder / name)
    # A body that says the same of every text: its words are all one.
    tiny.save("bert", folder / "deaf", seed=1)
    weights = load_file(folder / "deaf" / "model.safetensors")
    deaf = {name: torch.zeros_like(w) if "word_embeddings" in name else w for name, w in weights.items()}
    save_file(deaf, folder / "deaf" / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def recipe(models: Path, tmp_path: Path) -> Path:
    """Texts whose subject is the label, on a tiny BERT."""
    write_texts(tmp_path / "texts.csv", 160)
    file = tmp_path / "subjects.py"
    file.write_text(
        '"""Subjects."""\nfrom hftl import Head, Recipe, recipe\n\n\n@recipe\ndef subjects() -> Recipe:\n'
        f"    return Recipe(backbone={str(models / 'bert')!r}, data={str(tmp_path / 'texts.csv')!r}, method=Head())\n"
    )
    return file


def test_rank_orders_backbones_and_the_winner_extracts_nothing_again(cli: Cli, recipe: Path, models: Path) -> None:
    names = [str(models / name) for name in ("bert", "roberta", "deaf")]
    answer = json.loads(cli.ok("rank", recipe, "--backbones", ",".join([*names, "hftl/glyph-vit-tiny"]), "--json"))
    assert answer["metric"] == "accuracy"
    assert answer["rows"] == 128
    ranked = answer["backbones"]
    assert [each["probe"]["value"] for each in ranked] == sorted((e["probe"]["value"] for e in ranked), reverse=True)
    assert ranked[-1]["backbone"] == names[2]
    assert ranked[-1]["group"] > ranked[0]["group"]
    for each in ranked:
        assert each["probe"]["low"] <= each["probe"]["value"] <= each["probe"]["high"]
        assert each["rows_per_second"] > 0
        assert each["bytes_per_row"] % 4 == 0
    bert = next(each for each in ranked if each["backbone"] == names[0])
    held = load_file(models / "bert" / "model.safetensors")
    assert bert["parameters"] == sum(value.numel() for value in held.values())
    # What reads pictures is a row with its reason.
    assert [each["backbone"] for each in answer["failed"]] == ["hftl/glyph-vit-tiny"]
    assert "reads pictures" in answer["failed"][0]["why"] or "texts" in answer["failed"][0]["why"]
    winner = answer["command"].split()
    assert winner[:3] == ["hftl", "run", str(recipe)]
    cli.ok(*winner[1:], "--out", "won")
    counts = json.loads(Path("won/metrics.json").read_text())["features"]
    # The test split alone: the scout never looked at it.
    assert counts["computed"] <= 32
    assert counts["reused"] >= 128


def test_a_subset_is_the_same_rows_for_all_and_part_of_a_larger_one(cli: Cli, recipe: Path, models: Path) -> None:
    names = ",".join(str(models / name) for name in ("bert", "distilbert"))
    small = json.loads(cli.ok("rank", recipe, "--backbones", names, "--subset", "40", "--json"))
    assert small["rows"] == 40
    cli.ok("rank", recipe, "--backbones", str(models / "bert"), "--subset", "60", "--quiet")
    assert "group" in cli.out
    assert cli.err == ""
    assert (
        "0 computed, 60 reused"
        in cli("rank", recipe, "--backbones", str(models / "bert"), "--subset", "60") * "" + cli.err
    )


def test_rank_says_what_to_give(cli: Cli, recipe: Path) -> None:
    assert "--backbones A,B,C, or --all" in cli.refused("rank", recipe)
    assert "no backbone could be ranked; nobody/knows" in cli.refused("rank", recipe, "--backbones", "nobody/knows")


def test_all_are_those_that_read_the_same(cli: Cli, recipe: Path) -> None:
    from hftl.scout.rank import registered_alike

    names = registered_alike(hftl.Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits"))
    assert "hftl/glyph-vit-tiny" in names
    assert "facebook/dinov2-small" in names
    assert "google-bert/bert-base-uncased" not in names


def test_transfer_to_digits_is_positive(cli: Cli) -> None:
    answer = json.loads(cli.ok("transfer", DIGITS, "--subset", "600", "--seeds", "1", "--json"))
    assert answer["verdict"] == "positive"
    names = [each["name"] for each in answer["rivals"]]
    assert sorted(names) == ["most frequent class", "no network", "random weights, 1 times"]
    for each in answer["rivals"]:
        # Pixels and edges do nearly as well on digits; what counts is to be above random weights.
        assert each["gain"]["low"] > 0 or each["name"] == "no network"
        assert each["gain"]["value"] == pytest.approx(answer["pretrained"]["value"] - each["score"]["value"])
    assert len(answer["outputs"]) == 10
    assert "positive" in answer["advice"]
    # The twin's features were kept.
    cli.ok("transfer", DIGITS, "--subset", "600", "--seeds", "1")
    assert cli.err.count("0 computed, 600 reused") == 2


def test_shuffled_labels_transfer_nothing(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    with (tmp_path / "texts.csv").open(encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    labels = [row[1] for row in rows]
    random.Random(0).shuffle(labels)
    with (tmp_path / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *([row[0], label] for row, label in zip(rows, labels, strict=True))])
    answer = json.loads(cli.ok("transfer", recipe, "--seeds", "2", "--json"))
    assert answer["verdict"] == "none"
    assert answer["hurt"] == []


def test_a_backbone_that_hears_nothing_is_a_negative_transfer(cli: Cli, recipe: Path, models: Path) -> None:
    answer = json.loads(cli.ok("transfer", recipe, "--backbone", models / "deaf", "--seeds", "2", "--json"))
    assert answer["verdict"] == "negative"
    assert set(answer["hurt"]) <= {"cats", "dogs", "birds"}
    assert answer["hurt"]
    assert "take another backbone" in answer["advice"]


def test_a_curve_rises_and_says_what_more_labels_bring(cli: Cli) -> None:
    answer = json.loads(cli.ok("curve", DIGITS, "--subset", "400", "--json"))
    rows = [point["rows"] for point in answer["points"]]
    assert rows == sorted(rows)
    # A fifth is held out.
    assert rows[-1] == 320
    scores = [point["score"]["value"] for point in answer["points"]]
    assert scores[-1] > scores[0]
    assert answer["doubled"] is not None or answer["why_not"]
    assert "Twice the labels (800 rows)" in answer["advice"] or "cannot tell" in answer["advice"]
    assert answer["predicted"] == pytest.approx(scores[-1], abs=0.03)


def test_a_curve_of_noise_cannot_tell(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    write_texts(tmp_path / "texts.csv", 160)
    lines = (tmp_path / "texts.csv").read_text().splitlines()
    shuffled = [
        line.rsplit(",", 1)[0] + random.Random(i).choice([",cats", ",dogs"]) for i, line in enumerate(lines[1:])
    ]
    (tmp_path / "texts.csv").write_text("\n".join([lines[0], *shuffled]) + "\n")
    answer = json.loads(cli.ok("curve", recipe, "--json"))
    assert answer["doubled"] is None
    assert "does not rise beyond noise" in answer["why_not"]
    assert "cannot tell" in answer["advice"]


def write_scores(path: Path) -> None:
    """Texts whose subject decides a number."""
    generator = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "score"])
        for _ in range(120):
            subject = generator.choice(["cat", "dog", "bird"])
            writer.writerow([f"the {subject} sat under the tree", {"cat": 0.1, "dog": 0.55, "bird": 0.9}[subject]])


@pytest.mark.parametrize("command", ["rank", "transfer", "curve"])
def test_other_kinds_of_labels_are_answered(cli: Cli, recipe: Path, tmp_path: Path, models: Path, command: str) -> None:
    generator = random.Random(0)
    options = ["--backbones", str(models / "bert")] if command == "rank" else ["--seeds", "2"]
    write_scores(tmp_path / "scores.csv")
    answer = json.loads(cli.ok(command, recipe, "--data", tmp_path / "scores.csv", *options, "--json"))
    assert answer["metric"] == "r2"
    with (tmp_path / "tags.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "tags"])
        for _ in range(120):
            subjects = generator.sample(["cat", "dog", "bird"], generator.choice([1, 2]))
            writer.writerow([f"the {' '.join(subjects)} sat", "|".join(subjects)])
    several = ["--data", tmp_path / "tags.csv", "--task", "multi_label", "--label-columns", "tags"]
    answer = json.loads(cli.ok(command, recipe, *several, *options, "--json"))
    assert answer["metric"] == "map"


def marked(task: str, **marks: np.ndarray) -> TrainingRows:
    """Rows in copies of four, each copy with the features and the label of the others, so that copies give it away."""
    generator = np.random.default_rng(0)
    features = np.repeat(generator.normal(size=(40, 60)), 4, axis=0).astype(np.float32)
    classes = np.repeat(generator.integers(0, 2, 40), 4)
    labels = classes if task == "single_label" else classes[:, None].astype(np.float32)
    split = Split("train", Texts([("x",)] * 160, [str(i) for i in range(160)]), labels, Marks(**marks))
    names = ["a", "b"] if task == "single_label" else ["y"]
    data = Data("made", Task(task), names, split, None, split.select(np.zeros(0, dtype=np.int64), "test"), [], {})
    criterion = Criterion.of_task(Task(task))
    return TrainingRows(torch.from_numpy(features), split, data, None, None, False, 0, criterion)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["single_label", "regression"])
def test_a_curve_chooses_strengths_without_copies_of_a_row_on_the_other_side(task: str) -> None:
    chosen: dict[bool, float] = {}
    for grouped in (False, True):
        known = marked(task, **({"groups": np.repeat(np.arange(40), 4)} if grouped else {}))
        _, scores = measured_sizes(known, 1, quiet=True)
        (score,) = scores[-1]
        # How sure a head is tells its strength: noise that is learnt by heart through copies takes a weak one.
        chosen[grouped] = float(np.abs(score.scores - score.scores.mean(0)).mean())
    assert chosen[True] < 0.5 * chosen[False]


def test_draws_of_a_curve_by_time_are_of_the_same_samples() -> None:
    times = np.arange(160).astype(np.float64)
    _, scores = measured_sizes(marked("single_label", times=times), 3, quiet=True)
    one, other, _ = scores[-1]
    assert one.rows.tolist() == other.rows.tolist()
    # One head on all rows before, judged on one set of samples: every seed says the same.
    assert np.corrcoef(one.draws, other.draws)[0, 1] > 0.9


def test_rivals_are_paired_on_the_rows_that_every_head_could_judge(tmp_path: Path, models: Path) -> None:
    # The one group that has birds is in one fold: no head could judge them, so nothing else may be scored on them.
    rows = [(f"the {('cat', 'dog')[i % 2]} sat {i}", ("cats", "dogs")[i % 2], f"g{i // 4}") for i in range(80)]
    rows += [(f"the bird sat {i}", "birds", "aviary") for i in range(4)]
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        with (tmp_path / "data" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label", "group"), *(rows if name == "train" else rows[-1:])])
    known = hftl.Recipe(
        backbone=str(models / "bert"), data=str(tmp_path / "data"), label_columns=["label"], group="group"
    )
    answer = transfer(known, seeds=1, quiet=True)
    rows = [score.rows.tolist() for rival in answer.rivals for score in rival.draws]
    assert rows == [list(range(80))] * 3
    assert {each.name for each in answer.outputs} == {"cats", "dogs"}


def test_a_metric_that_says_nothing_of_one_answer_leaves_that_rival_out(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv")
    given = ["--data", tmp_path / "scores.csv", "--metric", "spearman", "--seeds", "1"]
    answer = json.loads(cli.ok("transfer", recipe, *given, "--json"))
    assert {each["name"] for each in answer["rivals"]} == {"no network", "random weights, 1 times"}
    assert any("one answer for all rows: spearman is undefined" in note for note in answer["notes"])


def test_fewer_groups_than_folds_make_fewer_folds_and_it_is_said(
    cli: Cli, recipe: Path, tmp_path: Path, models: Path
) -> None:
    rows = [(f"the {('cat', 'dog')[i % 2]} sat {i}", ("cats", "dogs")[i % 2], f"g{i // 10}") for i in range(40)]
    with (tmp_path / "four.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "group"), *rows])
    given = ["--data", tmp_path / "four.csv", "--label-columns", "label", "--group", "group", "--input-columns", "text"]
    ranked = json.loads(cli.ok("rank", recipe, "--backbones", models / "bert", *given, "--json"))
    assert ranked["folds"] == 3
    answer = json.loads(cli.ok("transfer", recipe, *given, "--seeds", "1", "--json"))
    assert "cross-validated in 3 folds, not 5: rows are divided by a column" in answer["notes"]


def test_very_many_classes_of_two_rows_are_answered_or_refused(
    cli: Cli, recipe: Path, tmp_path: Path, models: Path
) -> None:
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(250):
            writer.writerows([[f"the cat sat on {number} mat {i}", f"class {number}"] for i in range(2)])
    (tmp_path / "test.csv").write_text("text,label\nthe cat sat,class 0\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "pairs.csv").rename(tmp_path / "data" / "train.csv")
    (tmp_path / "test.csv").rename(tmp_path / "data" / "test.csv")
    given = ["--data", tmp_path / "data", "--label-columns", "label"]
    answer = json.loads(cli.ok("rank", recipe, "--backbones", models / "bert", *given, "--json"))
    assert answer["rows"] == 500
    assert answer["backbones"][0]["probe"]["value"] <= 1
    assert "a learning curve begins at 500" in cli.refused("curve", recipe, *given)


def test_one_class_is_refused_in_one_line(cli: Cli, recipe: Path, tmp_path: Path, models: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\n" + "the cat sat,cats\n" * 20)
    for command in (["rank", recipe, "--backbones", models / "bert"], ["transfer", recipe], ["curve", recipe]):
        assert "class" in cli.refused(*command, "--data", tmp_path / "one.csv")


def test_advice_ends_with_a_command_that_works(cli: Cli, recipe: Path, models: Path) -> None:
    others = str(models / "deaf")
    answer = json.loads(cli.ok("advise", recipe, "--backbones", others, "--minutes", "2", "--json"))
    assert answer["backbone"] == str(models / "bert")
    assert len(answer["evidence"]) + len(answer["skipped"]) >= 5
    methods = [trial["method"] for trial in answer["trials"]]
    if methods:
        assert methods[0] == "head"
        assert all(trial["gain"] is not None for trial in answer["trials"][1:])
    else:
        assert any(why.startswith("trials: ") for why in answer["skipped"])
    command = answer["command"].split()
    cli.ok(*command[1:], "--out", "advised", "--quiet")
    assert (Path("advised") / "model" / "config.json").is_file()


def test_trials_are_made_where_the_probe_leaves_room(cli: Cli, recipe: Path, models: Path) -> None:
    # Texts that all look alike to the frozen body: only training it could help.
    answer = json.loads(cli.ok("advise", recipe, "--backbone", models / "deaf", "--minutes", "3", "--json"))
    assert {trial["method"] for trial in answer["trials"]} == {"head", "partial", "lora", "full"}
    for trial in answer["trials"]:
        assert trial["score"]["low"] <= trial["score"]["value"] <= trial["score"]["high"]
        assert trial["seconds"] >= 0


def test_advice_within_seconds_still_ends_with_a_command(cli: Cli, recipe: Path) -> None:
    answer = json.loads(cli.ok("advise", recipe, "--minutes", "0.1", "--json"))
    assert answer["evidence"]
    assert answer["command"].startswith("hftl run")


def remember_speed(recipe: hftl.Recipe, speed: float) -> None:
    """Leave in the store what a slow machine measured of a backbone."""
    backbone = load_backbone(find(recipe.backbone), BackboneOptions())
    space = open_space(FeatureStore(cache_root()), backbone, find(recipe.backbone).origin, View())
    keep_remembered(FeatureStore(cache_root()).root / "speeds.json", f"rows/s {space.id} cpu", speed)


def test_a_budget_that_first_features_would_not_keep_is_kept_by_fewer_rows(
    cli: Cli, recipe: Path, models: Path
) -> None:
    made = hftl.Recipe(backbone=str(models / "bert"), data=str(recipe.parent / "texts.csv"))
    remember_speed(made, 1.0)
    answer = json.loads(cli.ok("advise", recipe, "--minutes", "0.5", "--json"))
    # 128 rows would take 128 s, and half of 30 s suffice for fewer than the 64 that a question is asked of at least.
    assert "estimate  128 rows to compute: about " in cli.err
    assert any(why.startswith("64 of 128 training rows: ") for why in answer["skipped"])
    # What random weights give for them would take longer than all that there was.
    said = ("transfer: its features would take about 64 s", "transfer: the 0.5 minutes were over")
    assert any(why.startswith(said) for why in answer["skipped"])
    # So would those of the rows that the audit reads beside.
    assert missing_features(made, quiet=True).missing


def test_what_a_first_pass_takes_is_asked_of_what_is_not_stored(recipe: Path, models: Path) -> None:
    made = hftl.Recipe(backbone=str(models / "roberta"), data=str(recipe.parent / "texts.csv"))
    with reading(offline=True, allow_pickle=False, on_bad_row="error", quiet=True) as reader:
        spec, target, data = reader.inputs(made)
    before = first_pass(spec, target, data, View())
    assert before.rows == sum(data.sizes().values())
    assert before.start < before.seconds < float("inf")
    # Nothing was stored by asking, and what was measured is remembered.
    assert count_lacking(spec, target, data, View()) == before.rows
    assert first_pass(spec, target, data, View()).speed == pytest.approx(before.speed, abs=1e-3)
    hftl.features(made, quiet=True)
    assert first_pass(spec, target, data, View()).seconds == 0


def test_answers_are_python_too(recipe: Path, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = hftl.Recipe(backbone=str(models / "bert"), data=str(tmp_path / "texts.csv"))
    ranking = hftl.rank(made, [str(models / "bert"), str(models / "deaf")], quiet=True)
    assert isinstance(ranking, hftl.Ranking)
    assert ranking.backbones[0].backbone == str(models / "bert")
    assert ranking.backbones[0].probe.value > ranking.backbones[1].probe.value
    assert json.dumps(ranking.as_json())
    assert "draws" not in repr(ranking)

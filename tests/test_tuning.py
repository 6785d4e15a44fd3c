"""`hftl tune`: what is tried, chosen, said, and not lost; HFTL_CRASH_ROUNDS=50 for more kills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import runs
import scipy.stats
import tiny
from runs import Cli, metrics

import hftl
from hftl.errors import RecipeError
from hftl.recipes import find_recipe
from hftl.tuning import study
from hftl.tuning.search import Choices, Range, search_of, searched
from hftl.tuning.tuned import repeated_score

ROUNDS = int(os.environ.get("HFTL_CRASH_ROUNDS", "2"))
TUNERS = Path(__file__).with_name("tuners.py")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with a tiny backbone and texts with all three splits."""
    tiny.save("bert", tmp_path / "backbone")
    (tmp_path / "texts").mkdir()
    for seed, (part, rows) in enumerate({"train": 60, "validation": 30, "test": 30}.items()):
        runs.write_texts(tmp_path / "texts" / f"{part}.csv", rows, seed=seed)
    return tmp_path


def tuning(folder: Path, *arguments: str) -> list[str]:
    backbone, data = str(folder / "backbone"), str(folder / "texts")
    return ["tune", "--backbone", backbone, "--data", data, "--out", str(folder / "study"), *arguments]


def rows_of(folder: Path, part: str) -> list[tuple[str, str]]:
    return [(row["text"], row["label"]) for row in pyarrow.csv.read_csv(folder / "texts" / f"{part}.csv").to_pylist()]


# ── what may be tried ────────────────────────────────────────────────────────────────────────────────────────────────

RECIPE = hftl.Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits", method=hftl.LoRA())


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("method.lr=1e-5..1e-3:log", Range("method.lr", 1e-5, 1e-3, log=True, step=None, whole=False)),
        ("method.dropout=0..0.5:0.1", Range("method.dropout", 0, 0.5, log=False, step=0.1, whole=False)),
        ("method.alpha=1..32", Range("method.alpha", 1, 32, log=False, step=None, whole=False)),
        ("depth=1..4", Range("depth", 1, 4, log=False, step=None, whole=True)),
        ("method.r=4..64:log", Range("method.r", 4, 64, log=True, step=None, whole=True)),
        ("method.r=4,8,16", Choices("method.r", ("4", "8", "16"))),
        ("method.lr=1e-4, 2e-4", Choices("method.lr", ("1e-4", "2e-4"))),
        ("method.rslora=true,false", Choices("method.rslora", ("true", "false"))),
        ("method.class_weight=balanced,null", Choices("method.class_weight", ("balanced", "null"))),
        (
            'method.lora={"target_modules": ["query"]},{}',
            Choices("method.lora", ('{"target_modules": ["query"]}', "{}")),
        ),
        ("backbone=a,../b", Choices("backbone", ("a", "../b"))),
    ],
)
def test_a_range_is_read_as_the_type_of_its_field(how: str, found: Range | Choices) -> None:
    assert search_of(searched([how]), RECIPE).dimensions == (found,)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("method.lr", "write FIELD=RANGE"),
        ("lr=1e-5..1e-3", "did you mean 'method.lr'"),
        ("methd.lr=1,2", "no field of that name"),
        ("method.rank=4,8", "no field 'method.rank'"),
        ("seed=1..5", "must be the same in all trials"),
        ("test_size=0.1,0.2", "must be the same in all trials"),
        ("method.lr=1e-3..1e-5", "the smaller number first"),
        ("method.lr=0..1:log", "begins above 0"),
        ("method.lr=0.1..1:lg", "behind the colon"),
        ("method.lr=0.1..1:", "cannot be read"),
        ("method.lr=0.1..x", "cannot be read"),
        ("method.lr=0.1..1:0.7", "no whole number of steps"),
        ("method.lr=0..1", "greater than 0"),
        ("method.r=1.5..3", "whole numbers"),
        ("method.r=0,4", "greater than or equal to 1"),
        ("method.r=4", "one value is nothing to choose from"),
        ("method.schedule=1..2", "takes no numbers"),
        ("method.schedule=cosine,lineal", "'cosine', 'linear' or 'constant'"),
        ("method.rslora=true,maybe", "valid boolean"),
        ("method=lora,lorax", "no method is called"),
        ("method.folds=3,5", "the method 'lora' has no field 'folds'"),
    ],
)
def test_what_cannot_be_tried_is_said_in_one_line(how: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)) as refused:
        search_of(searched([how]), RECIPE)
    assert "\n" not in str(refused.value)


def test_a_field_that_a_searched_method_lacks_is_refused() -> None:
    with pytest.raises(RecipeError, match="'full' has no field 'r'"):
        search_of({"method": "lora,full", "method.r": "4,8"}, RECIPE)


def test_combinations_are_counted_and_the_recipe_is_found_among_them() -> None:
    space = search_of({"method.r": [4, 16], "method.warmup": "0.1..0.3:0.1", "method.dora": "true,false"}, RECIPE)

    assert space.size == len(list(space.combinations())) == 12
    assert space.own(RECIPE) == {"method.r": "16", "method.warmup": 0.1, "method.dora": "false"}
    assert search_of({"method.r": "4,8"}, RECIPE).own(RECIPE) is None
    assert search_of({"method.lr": "1e-5..1e-3:log"}, RECIPE).own(RECIPE) == {"method.lr": 2e-4}


# ── a search ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_search_chooses_on_validation_rows_and_leaves_a_recipe_and_a_page(texts: Path, cli: Cli) -> None:
    cli.ok(*tuning(texts, "--search", "method.pooling=native,mean", "--repeats", "2", "--json"))
    answer = json.loads(cli.out)

    # Each score is that of a plain run which is tested on the validation rows.
    scores = {trial["values"]["method.pooling"]: trial["score"] for trial in answer["trials"]}
    given = {name: rows_of(texts, part) for name, part in (("train", "train"), ("validation", "validation"))}
    given["test"] = given["validation"]
    for pooling, score in scores.items():
        alike = hftl.Recipe(backbone=str(texts / "backbone"), data=given, method=hftl.Head(pooling=pooling))
        run = hftl.run(alike, out=texts / f"plain-{pooling}", quiet=True, report=False)
        assert run.metrics["eval"]["accuracy"] == pytest.approx(score, abs=1e-12)
    assert set(scores) == {"native", "mean"}
    assert answer["trials"][answer["best"]]["score"] == answer["searched"] == max(scores.values())

    # The run, the file and the page are those of the chosen recipe.
    chosen = find_recipe(answer["recipe"])()
    assert chosen.method.pooling == answer["chosen"]["method.pooling"]
    assert metrics(Path(answer["run"]))["eval"]["accuracy"] == pytest.approx(answer["tested"]["value"])
    assert f"trial {answer['best']} (method.pooling" in Path(answer["report"]).read_text().replace("Trial", "trial")
    assert json.loads((texts / "study" / "tune.json").read_text()) == answer


def test_no_row_is_computed_twice_and_test_rows_wait_for_the_end(texts: Path, cli: Cli) -> None:
    search = ["--search", "method.r=2,4", "--search", "method.lr=1e-3,1e-2"]
    out = cli.ok(*tuning(texts, "--method", "lora", "--epochs", "1", *search, "--repeats", "0"))

    learnt = {text for part in ("train", "validation") for text, _ in rows_of(texts, part)}
    tested = {text for text, _ in rows_of(texts, "test")}
    assert f"features  {len(learnt)} computed" in out
    runs_made = [metrics(path.parent)["features"]["computed"] for path in (texts / "study").glob("*/metrics.json")]
    assert sum(runs_made) == len(tested - learnt)
    assert "too good" in out


def test_a_trial_below_the_median_is_ended_and_one_that_diverges_costs_only_itself(texts: Path) -> None:
    recipe = hftl.Recipe(
        backbone=str(texts / "backbone"), data=str(texts / "texts"), method=hftl.Full(epochs=3, batch_size=16)
    )
    rates = [1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 3.0, 1e30]

    found = hftl.tune(recipe, {"method.lr": rates}, repeats=0, out=texts / "study", quiet=True)

    states = {float(trial.values["method.lr"]): trial for trial in found.trials}
    assert states[3.0].state == "pruned"
    assert states[3.0].epochs < 3
    assert states[1e30].state == "failed"
    assert "lower --lr" in states[1e30].why
    assert {states[rate].state for rate in rates[:5]} == {"finished"}
    # Of trials that are as good as one another the recipe as it stands is taken, which is the first.
    assert found.trials[0].values == {"method.lr": "5e-05"}
    assert found.chosen == found.trials[0].values
    assert found.gain is None
    assert "nothing that was tried is better" in found.advice
    assert any("failed" in note for note in found.notes)


def test_a_study_goes_on_only_with_what_it_began_with(texts: Path, cli: Cli) -> None:
    cli.ok(*tuning(texts, "--search", "depth=1,2", "--repeats", "0"))
    before = json.loads((texts / "study" / "tune.json").read_text())

    again = cli.ok(*tuning(texts, "--search", "depth=1,2", "--repeats", "0"))

    assert "2 trials are there already" in again
    assert json.loads((texts / "study" / "tune.json").read_text()) == before
    with_bound = cli.ok(*tuning(texts, "--search", "depth=1,2", "--repeats", "0", "--memory", "4G"))
    assert "2 trials are there already" in with_bound
    assert "what is searched" in cli.refused(*tuning(texts, "--search", "depth=1..2", "--repeats", "0"))
    assert "the recipe" in cli.refused(*tuning(texts, "--search", "depth=1,2", "--seed", "3"))
    (texts / "study" / "study.db").write_bytes(b"no database" * 1000)
    assert cli(*tuning(texts, "--search", "depth=1,2")) == 1
    assert "study.db cannot be read or written" in cli.err


def test_what_cannot_be_tuned_is_refused_before_a_trial(texts: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "has 2 blocks; give 1 to 2" in cli.refused(*tuning(texts, "--search", "depth=1..9"))
    assert "nobody" in cli.refused(*tuning(texts, "--search", f"backbone={texts / 'backbone'},nobody"))
    assert "no interval" in cli.refused(*tuning(texts, "--search", "depth=1,2", "--repeats", "1"))
    assert "nothing to search" in cli.refused(*tuning(texts))
    assert "twice" in cli.refused(*tuning(texts, "--search", "depth=1,2", "--search", "depth=1..2"))
    assert not (texts / "study").exists()
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    assert "pip install 'hftl[tune]'" in cli.refused(*tuning(texts, "--search", "depth=1,2"))


def test_the_mean_of_repeats_has_the_interval_of_a_t_test() -> None:
    scores = [0.9, 0.92, 0.95, 0.91]

    plain, anew, fixed = (repeated_score(scores, **given) for given in ({}, {"drawn_anew": 0.25}, {"spread": 0.02}))

    wanted = scipy.stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    assert (plain.low, plain.high) == pytest.approx(tuple(wanted))
    assert anew.high - anew.value == pytest.approx((plain.high - plain.value) * np.sqrt((1 / 4 + 0.25) / (1 / 4)))
    assert fixed.high - fixed.value == pytest.approx(np.hypot(plain.high - plain.value, 1.959964 * 0.02))


# ── nothing lost ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_killed_processes_lose_only_their_trial_and_several_share_a_study(texts: Path) -> None:
    runs.write_texts(texts / "texts.csv", 60)
    done = subprocess.run(
        [sys.executable, str(TUNERS), str(texts), str(ROUNDS), "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert report["violations"] == []
    assert report["statuses"] == [0, 0], report["answers"]
    first, second = map(json.loads, report["answers"])
    assert first == second
    assert (len(first["trials"]), len(first["repeats"])) == (report["trials"], 2)
    assert report["failed"] <= ROUNDS
    assert not [name for name in report["left"] if name.startswith(".")]

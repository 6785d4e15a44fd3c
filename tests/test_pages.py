"""The pages of comparisons and of the scout's answers say what the answers say, and are written where it is said."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
from run_folders import HOSTILE, classifier, write_run
from runs import Cli

from hftl.recipes import Recipe
from hftl.report.answers import write_answer
from hftl.report.comparison import compare
from hftl.scout.curve import curve
from hftl.scout.layers import layers
from hftl.tasks import Task


def text_of(page: Path) -> str:
    """What a person reads on a page, on one line."""
    raw = re.sub(r"<(style|script)>.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", raw)).split())


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    tiny.save("vit", tmp_path / "vit")
    photos = runs.write_images(tmp_path / "photos", per_class=12)
    return Recipe(backbone=str(tmp_path / "vit"), data=str(photos))


def test_the_page_of_a_comparison_has_its_numbers(cli: Cli, tmp_path: Path):
    for name, right, seed in (("a", 0.7, 1), ("b", 0.95, 2)):
        labels, scores = classifier(300, 3, right, seed)
        write_run(tmp_path / name, labels=labels, scores=scores, names=("x", "y", "z"), seconds=seed * 3.25)
    assert cli.ok("report", "a", "b") == "comparison.html\n"
    said, answer = text_of(tmp_path / "comparison.html"), compare(["a", "b"])
    second = answer.runs[1]
    for run in answer.runs:
        assert f"{run.folder} {run.score}" in said
    assert f"{second.against_first.signed()} {second.against_first.p:.3f} better" in said
    assert "run 2 is better than run 1" in said
    for each in answer.outputs:
        assert f"{each.name} {each.rows:,} {each.scores[0]:.3f} {each.scores[1]:.3f}" in said
    assert "3.2 1.6 0.8" in said
    assert "1,234" in said
    for each in answer.disagreements[:20]:
        assert f"{each.row} (test), labelled {each.label}" in said
    assert cli.ok("report", "a", "b", "--out", "deep/er/page.html") == "deep/er/page.html\n"
    assert (tmp_path / "deep" / "er" / "page.html").read_text() == (tmp_path / "comparison.html").read_text()


def test_several_labels_and_regressions_have_pages_too(cli: Cli, tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = (rng.random((90, 3)) < 0.4).astype(np.float32)
    targets = rng.normal(size=(90, 2)).astype(np.float32)
    for name in "ab":
        scores = rng.random((90, 3)).astype(np.float32)
        write_run(tmp_path / f"m{name}", labels=labels, scores=scores, names="xyz", task=Task.MULTI_LABEL)
        write_run(
            tmp_path / f"r{name}", labels=targets, scores=targets + scores[:, :2], names="vw", task=Task.REGRESSION
        )
    cli.ok("report", "ma", "mb", "--out", "m.html")
    assert "Labels map of each label." in text_of(tmp_path / "m.html")
    cli.ok("report", "ra", "rb", "--out", "r.html")
    said = text_of(tmp_path / "r.html")
    assert "Targets r2 of each target." in said
    assert "These are the rows those on which they are furthest apart" in said


def test_what_a_loss_is_better_by_is_not_called_a_difference(cli: Cli, tmp_path: Path):
    targets = np.linspace(-1, 1, 60, dtype=np.float32)[:, None] @ np.ones((1, 2), dtype=np.float32)
    recipe = Recipe(backbone="hftl/glyph-vit-tiny", data="photos", metric="mse")
    for name, off in (("a", 0.3), ("b", 0.1)):
        scores = targets + np.float32(off) * np.sign(np.arange(120).reshape(60, 2) % 3 - 1).astype(np.float32)
        task = Task.REGRESSION
        write_run(tmp_path / name, labels=targets, scores=scores, names="vw", task=task, recipe=recipe)
    assert compare(["a", "b"]).runs[1].against_first.value > 0
    cli.ok("report", "a", "b")
    said = text_of(tmp_path / "comparison.html")
    assert "mse: better than run 1 by" in said
    assert "minus" not in said
    assert "r2 of each target." in said


def test_where_a_page_cannot_go_is_said(cli: Cli, tmp_path: Path):
    labels, scores = classifier(60, 3, 0.7, 1)
    for name in "ab":
        write_run(tmp_path / name, labels=labels, scores=scores, names=("x", "y", "z"))
    assert "--out is for the page of several runs" in cli.refused("report", "a", "--out", "x.html")
    (tmp_path / "file").touch()
    assert cli("report", "a", "b", "--out", "file/x.html") != 0
    assert "cannot write file/x.html" in cli.err
    assert "no run of hftl" in cli.refused("report", "a", ".")


def test_every_question_of_the_scout_writes_its_page(cli: Cli, tmp_path: Path, recipe: Recipe):
    (tmp_path / "r.py").write_text(
        "from hftl import Head, Recipe, recipe\n\n@recipe\ndef mine() -> Recipe:\n"
        "    return Recipe(backbone='vit', data='photos', method=Head(folds=2))\n"
    )
    copy = tmp_path / "photos" / "class1" / "copy.png"
    copy.write_bytes((tmp_path / "photos" / "class0" / "0.png").read_bytes())
    extra = {"rank": ["--backbones", "vit,nowhere"], "transfer": ["--seeds", "1"], "advise": ["--minutes", "0.1"]}
    said: dict[str, str] = {}
    for name in ("rank", "layers", "transfer", "curve", "audit", "advise"):
        page = tmp_path / f"{name}.html"
        answer = json.loads(cli.ok(name, "r.py", "--quiet", "--json", "--report", page, *extra.get(name, [])))
        said[name] = text_of(page)
        assert " ".join(answer["advice"].split()) in said[name]
        assert "vit on photos" in said[name]
        for number in intervals_in(answer):
            assert number in said[name], (name, number)
    assert "nowhere: " in said["rank"]
    assert "The transfer: " in said["transfer"]
    both = re.search(r"(\S+) \((\w+)\), labelled \w+ (\S+) \((\w+)\), labelled \w+ rather", said["audit"])
    assert both
    assert {Path(both[1]).name, Path(both[3]).name} == {"copy.png", "0.png"}
    assert (tmp_path / "audit.html").read_text().count("<img ") >= 2
    assert "hftl run r.py" in said["advise"]
    # Without --json the file is named.
    assert f"report {tmp_path / 'again.html'}" in cli.ok(
        "layers", "r.py", "--quiet", "--report", tmp_path / "again.html"
    )


def intervals_in(answer: object) -> list[str]:
    """Every score of an answer's lists as a page writes it, differences and fitted laws left out."""
    if isinstance(answer, dict):
        if {"value", "low", "high"} == set(answer):
            return [f"{answer['value']:.3f} ({answer['low']:.3f} to {answer['high']:.3f})"]
        return [n for key, each in answer.items() if key in LISTS for n in intervals_in(each)]
    return [number for each in answer for number in intervals_in(each)] if isinstance(answer, list) else []


LISTS = {"backbones", "probe", "depths", "pretrained", "rivals", "score", "points", "trials"}


def test_an_answer_is_written_from_python(tmp_path: Path, recipe: Recipe):
    found = layers(recipe, quiet=True)
    page = write_answer(found, tmp_path / "new" / "layers.html", about="some photos")
    assert page == tmp_path / "new" / "layers.html"
    assert "hftl layers · some photos" in text_of(page)
    for command in found.commands:
        assert command in text_of(page)


def test_the_law_of_a_curve_is_said_at_more_sizes(recipe: Recipe, tmp_path: Path):
    found = curve(recipe, quiet=True)
    if found.fitted:
        assert found.fitted[-1].rows == 2 * found.rows
        assert all(each.score.low <= each.score.value <= each.score.high for each in found.fitted)
        rising = [each.score.value for each in found.fitted]
        assert rising == sorted(rising)
    else:
        assert found.why_not


def test_nothing_of_other_people_is_obeyed(cli: Cli, tmp_path: Path):
    count = len(HOSTILE)
    labels, scores = classifier(4 * count, count, 0.5, 1)
    _, other = classifier(4 * count, count, 0.9, 2)
    rows = [f"{i} {HOSTILE[i % count]}" for i in range(4 * count)]
    for name, said, text in (("a", scores, HOSTILE[0]), ("b", other, HOSTILE[2])):
        write_run(
            tmp_path / name,
            labels=labels,
            scores=said,
            names=HOSTILE,
            rows=rows,
            recipe=Recipe(backbone=text, data=text),
        )
    cli.ok("report", "a", "b")
    raw = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert raw.count("<script") == raw.count("<style") == 1
    assert not re.search(r"<(iframe|form|base|link|object|embed|a href=.?javascript)", raw)
    assert not re.search(r"<[^>]*\son\w+\s*=", re.sub(r'"[^"]*"', '""', raw))
    assert [c for c in raw if not (c.isprintable() or c in "\n\u200c\u200d")] == []

"""The page of a run: its numbers are right, what others wrote does nothing in it, and it never costs a run."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import tiny
from runs import RECIPES, Cli
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import hftl
from hftl.errors import HftlError, UserError
from hftl.metrics import evaluate_predictions
from hftl.metrics.resampled import resampled_metrics
from hftl.report.page import write_report
from hftl.runs.folder import RunFolder
from hftl.runs.record import BackboneRecord, DataRecord, Metrics, RunRecord
from hftl.tasks import Task

# fmt: off
ALLOWED = {
    "a", "body", "caption", "circle", "clippath", "code", "dd", "defs", "div", "dl", "dt",
    "figcaption", "figure", "g", "h1", "h2", "h3", "head", "header", "html", "image", "img",
    "li", "main", "meta", "nav", "ol", "p", "path", "pre", "rect", "script", "section",
    "span", "style", "svg", "table", "tbody", "td", "text", "th", "thead", "title", "tr",
    "ul", "use", "wbr",
}
# fmt: on
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(2)</script>",
    "</title><img src=x onerror=alert(3)>",
    '"><svg onload=alert(4)>',
    "' onmouseover='alert(5)",
    '" autofocus onfocus="alert(6)',
    "<iframe src='https://evil.example'></iframe>",
    "<a href=javascript:alert(7)>x</a>",
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "<!-- comment",
    "]]><![CDATA[",
    "&lt;script&gt;",
    "&#60;b&#62;",
    "$\\frac{1}{0}$ $unclosed",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202eabc\u202c",
    "line\nbreak\r\nand\ttab",
    "nul\x00byte",
    "\ud83d\ude00 smiley".encode("utf-16", "surrogatepass").decode("utf-16"),
    "汉字 日本語 العربية",
    "x" * 2000,
    "../../etc/passwd",
    "file:///etc/passwd",
    "http://evil.example/x.png",
    "<base href=https://evil.example>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<math><mi xlink:href=javascript:alert(8)>",
    '=HYPERLINK("https://evil.example")',
    "",
]


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, text; nothing is left open."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.raw = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.said: dict[str, list[str]] = {}
        self.comments: list[str] = []
        self.feed(self.raw)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.said.setdefault(self.tags[-1] if self.tags else "", []).append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def text(self) -> str:
        """All that is shown."""
        shown = [part for tag, parts in self.said.items() if tag not in ("style", "script") for part in parts]
        return " ".join(" ".join(shown).split())

    def section(self, name: str) -> str:
        """The source of one section."""
        found = re.search(rf'<section id="{name}".*?</section>', self.raw, re.DOTALL)
        assert found, name
        return found[0]

    def rows(self, section: str) -> list[list[str]]:
        """The cells of the first table of a section, row by row, as text."""
        body = self.section(section).partition("<tbody>")[2].partition("</tbody>")[0]
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in body.split("<tr")[1:]]
        return [[re.sub("<[^>]+>", "", cell).strip() for cell in row] for row in cells]


def write_run(
    folder: Path,
    task: str,
    names: Sequence[str],
    labels: np.ndarray,
    logits: np.ndarray,
    *,
    rows: Sequence[str] | None = None,
    thresholds: list[float] | None = None,
    **report: Any,
) -> Path:
    """A run's folder as a run leaves it, without a model; what it says of rows is in ``report.json`` alone."""
    import torch

    kind = Task(task)
    run = RunFolder.create(folder)
    run.write_record(
        RunRecord(
            name="made",
            recipe={**hftl.Recipe(backbone="b", data="d").model_dump(), "method": {"name": "head"}},
            backbone=BackboneRecord(
                name="b", commit=None, pipeline_tag="text-classification", license={}, identity={"modality": "text"}
            ),
            data=DataRecord(
                identity={}, task=kind, label_names=list(names), rows={"train": 9, "test": len(labels)}, notes=[]
            ),
            versions={"hftl": "0"},
        )
    )
    scores = kind.scores(torch.from_numpy(logits)).numpy()
    shown = list(rows or (f"row {i}" for i in range(len(labels))))
    run.write_predictions(kind, shown, labels, scores, names, thresholds)
    values = evaluate_predictions(kind, logits, labels, names, thresholds)
    head = {"parameters": 7} | ({"thresholds": thresholds} if thresholds else {}) | report
    run.write_metrics(Metrics(eval=values, features={}, head=head, rows={"train": 9, "test": len(labels)}))
    run.release()
    return folder


def classes(rows: int, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits that are often, not always, right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, number, rows)
    logits = rng.normal(size=(rows, number)) + 2.5 * np.eye(number)[labels]
    return labels, logits.astype(np.float32)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job, with its page."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HFTL_CACHE", str(folder / "cache"))
        recipe = hftl.Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits")
        hftl.run(recipe, out=folder / "run", quiet=True)
        matrix = hftl.features(recipe, quiet=True)
    np.savez(folder / "features.npz", train=matrix.of("train")[0], test=matrix.of("test")[0])
    return folder


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_labels_and_confusions_on_the_page_are_those_of_scikit_learn(tmp_path: Path):
    labels, logits = classes(400, 6)
    names = [f"class {k}" for k in range(6)]
    page = Page(write_report(write_run(tmp_path / "run", "single_label", names, labels, logits)))
    predicted = logits.argmax(1)
    matrix = confusion_matrix(labels, predicted)
    expected = np.stack(precision_recall_fscore_support(labels, predicted)).T
    found = {row[0]: row for row in page.rows("labels")}
    wrong = matrix - np.diag(np.diag(matrix))
    for k, name in enumerate(names):
        precision, recall, f1, support = expected[k]
        assert found[name][1:5] == [f"{f1:.3f}", f"{precision:.3f}", f"{recall:.3f}", f"{int(support)}"]
        other, count = re.fullmatch(r"(.*) \((\d+)\)", found[name][5]).groups()
        assert wrong[k, names.index(other)] == wrong[k].max() == int(count)
    assert [row[1] for row in page.rows("labels")] == sorted(row[1] for row in page.rows("labels"))
    top = [(row[0], row[1], int(row[2])) for row in page.rows("confusions")]
    assert [count for *_, count in top] == sorted(wrong.ravel().tolist(), reverse=True)[: len(top)]
    assert all(wrong[names.index(a), names.index(b)] == count for a, b, count in top)
    # The numbers in the drawn matrix are its cells, in whatever order the classes stand.
    drawn = [int(n) for n in re.findall(r"<text[^>]*>(\d+)</text>", page.section("confusions"))]
    assert sorted(drawn) == sorted(n for n in matrix.ravel().tolist() if n)


def test_the_calibration_error_is_the_weighted_mean_of_gaps(tmp_path: Path):
    labels, logits = classes(500, 4)
    page = Page(write_report(write_run(tmp_path / "run", "single_label", list("abcd"), labels, logits)))
    scores = np.exp(logits.astype(np.float64))
    scores /= scores.sum(1, keepdims=True)
    confidence, right = scores.max(1), scores.argmax(1) == labels
    error = 0.0
    for k in range(15):
        inside = (confidence >= k / 15) & (confidence < (k + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert f"Expected calibration error on the test split: {error:.4f}" in page.text


@pytest.mark.parametrize("task", ["single_label", "multi_label", "regression"])
def test_metrics_on_resampled_rows_are_those_of_rows_that_stand_so_often(task: str):
    rng = np.random.default_rng(1)
    rows, names = 60, ["a", "b", "c"]
    logits = rng.normal(size=(rows, 3)).round(1).astype(np.float32)
    labels = {
        "single_label": rng.integers(0, 3, rows),
        "multi_label": (rng.random((rows, 3)) < 0.4).astype(np.float32),
        "regression": (logits + rng.normal(size=(rows, 3))).round(1).astype(np.float32),
    }[task]
    thresholds = [0.3, 0.5, 0.6] if task == "multi_label" else None
    import torch

    scores = Task(task).scores(torch.from_numpy(logits)).numpy()
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=5)
    found = resampled_metrics(Task(task), scores, labels, counts.astype(np.float64), thresholds)
    for b, times in enumerate(counts):
        drawn = np.repeat(np.arange(rows), times)
        expected = evaluate_predictions(task, logits[drawn], labels[drawn], names, thresholds)
        assert found.keys() == {name for name, value in expected.items() if isinstance(value, float)}
        for name, values in found.items():
            assert values[b] == pytest.approx(expected[name], abs=1e-6), name


def test_every_score_has_an_interval_around_it(digits: Path):
    page = Page(digits / "run" / "report.html")
    metrics = runs.metrics(digits / "run")
    shown = {row[0]: row[1:] for row in page.rows("scores")}
    assert len(shown) == 4 + 3  # the run's, and what costs nothing
    assert float(shown["Accuracy"][0]) == pytest.approx(metrics["eval"]["accuracy"], abs=5e-5)
    assert float(shown["Accuracy of nearest neighbours"][0]) == pytest.approx(
        metrics["head"]["baselines"]["knn"], abs=5e-5
    )
    for value, interval in shown.values():
        low, high = map(float, interval.split(" to "))
        assert low <= float(value) <= high


def test_nearest_training_rows_are_those_of_brute_force(digits: Path):
    features = np.load(digits / "features.npz")
    kept = json.loads((digits / "run" / "report.json").read_text())
    predicted = runs.predictions(digits / "run")
    wrong = [i for i, label in enumerate(predicted["label"]) if label != predicted["prediction"][i]]
    assert {each["row"] for each in kept["worst"]} == set(wrong)
    score = [predicted["scores"][each["row"]][int(predicted["label"][each["row"]])] for each in kept["worst"]]
    assert score == sorted(score)
    train = features["train"] - features["train"].mean(0)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    for each in kept["worst"]:
        query = features["test"][each["row"]] - features["train"].mean(0)
        cosine = np.sort(train @ query / np.linalg.norm(query))[::-1]
        np.testing.assert_allclose([near["cosine"] for near in each["near"]], cosine[:4], atol=2e-4)


# ── what others wrote ────────────────────────────────────────────────────────────────────────────────────────────────


def hostile_run(folder: Path) -> Path:
    labels, logits = classes(240, len(HOSTILE), seed=2)
    rows = [HOSTILE[i % len(HOSTILE)] for i in range(len(labels))]
    run = write_run(folder, "single_label", HOSTILE, labels, logits, rows=rows)
    shown = [{"split": HOSTILE[0], "name": text, "label": text, "texts": [text]} for text in HOSTILE]
    shown.append({"split": "test", "name": "x", "label": "y", "missing": HOSTILE[2]})
    wrong = np.flatnonzero(logits.argmax(1) != labels)[:20]
    near = [{"shown": k, "cosine": 0.5} for k in range(len(shown))]
    suspects = [{"shown": k, "suggested": text, "why": text} for k, text in enumerate(HOSTILE)]
    copies = [{"shown": k, "other": 0, "similarity": 1.0, "exact": True} for k in range(len(HOSTILE))]
    content = {
        "rows": shown,
        "worst": [{"row": int(row), "shown": k, "near": near} for k, row in enumerate(wrong)],
        "suspects": {"judged": {"test": 9}, "listed": {"test": 9}, "first": suspects},
        "copies": {"exact": {HOSTILE[0]: 1}, "near": 0, "compared": 1, "first": copies},
        "map": {"method": "PCA", "explained": [], "rows": [0, 1, 2], "x": [0, 1, 2], "y": [0, 1, 2]},
        "missing": {"near": HOSTILE[0]},
    }
    (run / "report.json").write_text(json.dumps(content))
    return run


def assert_inert(page: Page) -> None:
    assert set(page.tags) <= ALLOWED
    assert page.tags.count("script") == page.tags.count("style") == page.tags.count("title") == 1
    assert page.comments == []
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("style", "srcset", "action", "formaction", "autofocus", "background"), (tag, name)
        if name in ("href", "src", "xlink:href"):
            assert value.startswith(("#", "data:image/")), (tag, name, value[:80])
        if value.startswith("var("):
            assert re.fullmatch(r"var\(--[a-z0-9-]+\)", value)
    # Nothing that commands a terminal, and nothing that turns text around.
    assert [c for c in page.raw if not (c.isprintable() or c in "\n\u200c\u200d")] == []


def test_thirty_hostile_names_and_texts_are_shown_and_do_nothing(tmp_path: Path):
    page = Page(write_report(hostile_run(tmp_path / "run")))
    assert_inert(page)
    for text in ("<script>alert(1)</script>", "&lt;script&gt;", "{{ 7 * 7 }}", "$\\frac{1}{0}$", "汉字 日本語"):
        assert text in page.text
    assert "49" not in page.said.get("h1", [])
    assert "\ufffd[31mred" in page.text


@pytest.mark.parametrize("task", ["multi_label", "regression"])
def test_hostile_targets_and_labels_do_nothing(tmp_path: Path, task: str):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, len(HOSTILE))).astype(np.float32)
    labels = (rng.random(logits.shape) < 0.3).astype(np.float32)
    page = Page(write_report(write_run(tmp_path / "run", task, HOSTILE, labels, logits)))
    assert_inert(page)


def test_only_the_page_s_own_style_and_script_may_be_used(digits: Path):
    page = Page(digits / "run" / "report.html")
    assert_inert(page)
    policies = [value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value]
    assert len(policies) == 1
    for part in ("style", "script"):
        content = page.said[part][0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policies[0]
    assert policies[0].startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policies[0]
    # Of addresses only the namespace of SVG stands there, which nobody fetches.
    assert set(re.findall(r"https?://[^\s\"'<>]+", page.raw)) <= {"http://www.w3.org/2000/svg"}


def test_the_page_is_one_that_a_screen_reader_can_read(digits: Path):
    page = Page(digits / "run" / "report.html")
    assert ("html", "lang", "en") in page.attributes
    levels = [int(tag[1]) for tag in page.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    identities = [value for _, name, value in page.attributes if name == "id"]
    assert len(identities) == len(set(identities))
    linked = {value[1:] for tag, name, value in page.attributes if name == "href" and tag == "a"}
    assert linked <= set(identities)
    assert len([1 for tag, name, _ in page.attributes if (tag, name) == ("img", "alt")]) == page.tags.count("img")
    assert all(f' scope="{scope}"' in page.raw for scope in ("row", "col"))
    assert "<th>" not in page.raw


# ── any run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_page_is_made_again_from_the_folder_alone(digits: Path, tmp_path: Path, cli: Cli):
    shutil.copytree(digits / "run", tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_bytes()
    (tmp_path / "run" / "report.html").unlink()
    assert cli.ok("report", "run").strip() == str(Path("run/report.html"))
    assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_a_run_of_an_older_hftl_has_a_page_that_says_what_it_lacks(digits: Path, tmp_path: Path):
    shutil.copytree(digits / "run", tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    page = Page(write_report(tmp_path / "run"))
    assert page.text.count("the run kept no report.json") >= 3
    wrong = [
        row
        for row, a, b in zip(
            *(runs.predictions(tmp_path / "run")[c] for c in ("row", "label", "prediction")), strict=True
        )
        if a != b
    ]
    assert wrong
    assert all(row in page.section("worst") for row in wrong)
    assert_inert(page)


def test_what_is_no_finished_run_is_refused(tmp_path: Path, cli: Cli):
    assert "no folder" in cli.refused("report", "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no run of hftl" in cli.refused("report", "empty")
    labels, logits = classes(20, 2)
    run = write_run(tmp_path / "run", "single_label", ["a", "b"], labels, logits)
    (run / "predictions.parquet").write_bytes(b"damaged")
    with pytest.raises(HftlError, match=r"predictions\.parquet cannot be read"):
        write_report(run)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        write_report(run)


@pytest.mark.parametrize("number", [2, 3, 24, 25, 200, 300])
def test_two_to_three_hundred_classes_have_a_page(tmp_path: Path, number: int):
    labels, logits = classes(4 * number, number)
    names = [f"a long name of class {k}" for k in range(number)]
    path = write_report(write_run(tmp_path / "run", "single_label", names, labels, logits))
    page = Page(path)
    assert_inert(page)
    assert path.stat().st_size < 1_000_000
    assert len(page.rows("labels")) == number
    assert f"{number} labels" in page.text


def test_a_split_of_one_class_or_two_rows_has_a_page(tmp_path: Path):
    logits = np.array([[3.0, 0.0], [2.0, 0.0]], np.float32)
    page = Page(write_report(write_run(tmp_path / "run", "single_label", ["a", "b"], np.array([0, 0]), logits)))
    assert "No test row was predicted wrong." in page.text
    assert "without test rows stands last" in page.text
    one = write_run(tmp_path / "one", "regression", ["y"], np.array([[1.0]], np.float32), np.array([[2.0]], np.float32))
    assert "Worst rows" in Page(write_report(one)).text


def test_a_regression_of_several_targets_shows_each(tmp_path: Path):
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(80, 3)).astype(np.float32)
    expected = predicted + rng.normal(size=(80, 3)).astype(np.float32)
    page = Page(write_report(write_run(tmp_path / "run", "regression", ["x", "y", "z"], expected, predicted)))
    values = evaluate_predictions("regression", predicted, expected, ["x", "y", "z"])
    for name in ("x", "y", "z"):
        assert f"r2 {values['per_target'][name]['r2']:.4f}" in page.text
    assert f"{values['r2']:.4f}" in page.text


def test_several_labels_show_their_thresholds(tmp_path: Path):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(90, 3)).astype(np.float32)
    labels = (logits + rng.normal(size=logits.shape) > 0.5).astype(np.float32)
    thresholds = [0.3, 0.55, 0.7]
    run = write_run(tmp_path / "run", "multi_label", ["a", "b", "c"], labels, logits, thresholds=thresholds)
    page = Page(write_report(run))
    expected = evaluate_predictions("multi_label", logits, labels, ["a", "b", "c"], thresholds)
    found = {row[0]: row for row in page.rows("labels")}
    for name, row in expected["per_class"].items():
        assert found[name][1:4] == [f"{row[key]:.3f}" for key in ("f1", "precision", "recall")]
        assert float(found[name][5]) == row["threshold"]
    assert f"would be {expected['at_half']['f1_macro']:.4f} in place of {expected['f1_macro']:.4f}" in page.text
    assert {r[0]: r[1] for r in page.rows("scores")}["F1 (macro)"] == f"{expected['f1_macro']:.4f}"


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def noisy_pictures(folder: Path) -> Path:
    """Large pictures of noise, which compress badly, under labels that nobody can learn, each split with copies."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, rows in (("train", 60), ("test", 48)):
        for i in range(rows):
            place = folder / split / f"class{i % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (160, 160, 3)).astype(np.uint8)).save(place / f"{i}.png")
    for i in range(5):
        shutil.copy(folder / "train" / f"class{i % 3}" / f"{i}.png", folder / "test" / f"class{i % 3}" / f"copy{i}.png")
    return folder


def test_a_hundred_pictures_weigh_less_than_two_megabytes_and_copies_are_counted(cli: Cli, tmp_path: Path):
    backbone, data = tiny.save("vit", tmp_path / "backbone"), noisy_pictures(tmp_path / "data")
    (tmp_path / "r.py").write_text(
        "from hftl import Head, Recipe, recipe\n\n\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone={str(backbone)!r}, data={str(data)!r}, method=Head(folds=2))\n"
    )
    out = cli.ok("run", "r.py", "--out", "run", "--report")
    assert f"report    {Path('run/report.html')}" in out.splitlines()
    page = Page(tmp_path / "run" / "report.html")
    assert page.tags.count("img") >= 100
    assert len(page.raw) < 2_000_000
    assert_inert(page)
    assert "Exactly: 5 of test in train" in page.text


def test_without_a_report_nothing_of_it_is_written(cli: Cli, tmp_path: Path):
    cli.ok("run", RECIPES / "digits.py", "--out", "run", "--no-report")
    assert not list((tmp_path / "run").glob("report.*"))
    assert "report" not in cli.out
    assert "No map: the run kept no report.json" in Page(write_report(tmp_path / "run")).text


def test_matplotlib_is_brought_by_a_page_alone():
    import subprocess
    import sys

    code = "import sys, hftl.pipeline, hftl.cli.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_report_that_cannot_be_written_does_not_cost_the_run(cli: Cli, tmp_path: Path):
    # What a run was stopped in, with a folder where the file goes.
    (tmp_path / "run" / "report.json").mkdir(parents=True)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    out = cli.ok("run", RECIPES / "digits.py", "--out", "run", "--report")
    said = [line for line in out.splitlines() if line.startswith("report ")]
    assert len(said) == 1
    assert "not written" in said[0]
    assert "the run is finished" in said[0]
    assert runs.metrics(tmp_path / "run")["eval"]["accuracy"] > 0.95


def test_files_that_have_gone_are_said_to_have_gone(tmp_path: Path):
    import torch

    from hftl.frozen.head import train_head
    from hftl.frozen.recipe import inputs_of, stored_features, view_of
    from hftl.plugins.spec import BackboneOptions
    from hftl.report.collect import collect
    from hftl.terminal import Terminal

    backbone, data = tiny.save("vit", tmp_path / "backbone"), noisy_pictures(tmp_path / "data")
    recipe = hftl.Recipe(backbone=str(backbone), data=str(data), method=hftl.Head(folds=2))
    say = Terminal(quiet=True)
    spec, target, read = inputs_of(recipe, say, BackboneOptions(None, True, False))
    features = stored_features(
        spec, target, read, [view_of(recipe, target.backbone)], say, on_bad_row="error", quiet=True
    )
    trained = train_head(recipe.method, target, features, read, seed=0, device=torch.device("cpu"))
    shutil.rmtree(data / "test")
    kept = collect(read, features, trained, "image", 0)
    gone = [row for row in kept.rows if row.split == "test"]
    assert gone
    assert all("cannot be read" in row.missing and not row.picture for row in gone)
    assert all(row.picture.startswith("data:image/") for row in kept.rows if row.split == "train")
    sounds = collect(read, features, trained, "audio", 0)
    assert all(row.missing == "rows of audio cannot be shown on a page" for row in sounds.rows)


def test_fine_tuning_without_features_has_a_page(cli: Cli, tmp_path: Path):
    backbone, data = tiny.save("bert", tmp_path / "backbone"), runs.write_texts(tmp_path / "data.csv", 60)
    (tmp_path / "r.py").write_text(
        "from hftl import Full, Recipe, recipe\n\n\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone={str(backbone)!r}, data={str(data)!r}, method=Full(epochs=1, init='random'))\n"
    )
    cli.ok("run", "r.py", "--out", "run", "--report")
    page = Page(tmp_path / "run" / "report.html")
    assert "No map: the run computed no features" in page.text
    assert "epoch kept" in page.text
    assert_inert(page)
    # As a run leaves it that was killed within a line and resumed.
    events = (tmp_path / "run" / "events.jsonl").read_text()
    (tmp_path / "run" / "events.jsonl").write_text('{"event": "step", "st' + events + events)
    assert "Training loss by step" in Page(write_report(tmp_path / "run")).raw


def test_lines_that_load_the_model_load_it(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import html

    from PIL import Image

    page = Page(digits / "run" / "report.html")
    blocks = [html.unescape(block) for block in re.findall(r"<code>(.*?)</code></pre>", page.section("use"), re.DOTALL)]
    monkeypatch.chdir(digits)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(digits / "photo.jpg")
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "page", "exec"), {})

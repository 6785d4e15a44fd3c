"""Pages in a browser: no fault that axe-core finds, no request, all there without scripts, narrow, dark, on paper."""

from __future__ import annotations

import base64
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
import tiny
from browser import Browser, browsing, need_a_browser
from run_folders import HOSTILE, classifier, write_run

from hftl.cli import invoke
from hftl.wording import printable

PAGES = ["images", "texts", "labels", "targets", "sentences", "comparison", "hostile"]
ANSWERS = ["rank", "layers", "transfer", "curve", "audit", "advise"]
WORDS = [
    "cat",
    "red",
    "blue",
    "dog",
    "bird",
    "two",
    "sat",
    "ran",
    "flew",
    "under",
    "the",
    "tree",
    "over",
    "rug",
    "hill",
]
RECIPE = """
from hftl import Head, Recipe, recipe

@recipe
def r() -> Recipe:
    return Recipe(backbone="vit", data="photos", method=Head(folds=2))
"""


def write_table(path: Path, label: str, values: list[str], texts: list[str] | None = None) -> None:
    rng = random.Random(7)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", label])
        for place, value in enumerate(values):
            made = " ".join(rng.choice(WORDS) for _ in range(6))
            writer.writerow([f"{made} {texts[place]}" if texts else made, value])


def write_hostile_sentences(path: Path) -> None:
    """Sentences whose words, and the types of whose entities, would like to be obeyed."""
    rng = random.Random(5)
    with path.open("w", encoding="utf-8") as file:
        for place in range(96):
            kind = HOSTILE[place % 8]
            words = [rng.choice(WORDS), HOSTILE[place % len(HOSTILE)] or "x", rng.choice(WORDS)]
            file.write(json.dumps({"tokens": words, "tags": ["O", f"B-{kind}", f"I-{kind}"]}) + "\n")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    need_a_browser()
    with browsing() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pages of every kind, made by the command line from small real runs."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        tiny.save("vit", folder / "vit")
        tiny.save("bert", folder / "bert")
        Path("r.py").write_text(RECIPE)
        photos = runs.write_images(folder / "photos", per_class=14)
        # A copy under another name and another label.
        (photos / "class1" / "copy.png").write_bytes((photos / "class0" / "0.png").read_bytes())
        rng = random.Random(3)
        classes = [f"intent number {k}" for k in range(30)]
        write_table(Path("texts.csv"), "intent", classes * 6)
        write_table(Path("labels.csv"), "tags", ["|".join(rng.sample("abcde", rng.randint(1, 3))) for _ in range(120)])
        write_table(Path("targets.csv"), "score", [f"{rng.gauss(0, 1):.3f}" for _ in range(120)])
        write_table(Path("hostile.csv"), "label", HOSTILE * 4, [HOSTILE[(k * 7) % len(HOSTILE)] for k in range(128)])
        text = ["run", "r.py", "--backbone", "bert", "--quiet", "--data"]
        invoke(["run", "r.py", "--quiet", "--out", "images"])
        invoke(["run", "r.py", "--quiet", "--out", "images1", "--depth", "1"])
        invoke(["run", "r.py", "--quiet", "--out", "images2", "--folds", "3"])
        invoke([*text, "texts.csv", "--out", "texts"])
        invoke([*text, "labels.csv", "--out", "labels", "--label-separator", "|"])
        invoke([*text, "targets.csv", "--out", "targets"])
        write_hostile_sentences(folder / "hostile.jsonl")
        invoke([*text, "hostile.jsonl", "--out", "sentences"])
        invoke([*text, "hostile.csv", "--out", "hostile"])
        invoke([*text, "hostile.csv", "--out", "hostile1", "--depth", "1"])
        for name in PAGES:
            if name != "comparison":
                (folder / name / "report.html").rename(folder / f"{name}.html")
        invoke(["report", "images", "images1", "images2"])
        invoke(["report", "hostile", "hostile1", "--out", "hostile-comparison.html"])
        asked = {"rank": ["--backbones", "vit,nowhere"], "transfer": ["--seeds", "1"], "advise": ["--minutes", "0.2"]}
        for name in ANSWERS:
            invoke([name, "r.py", "--quiet", "--report", f"{name}.html", *asked.get(name, [])])
        hostile = ["r.py", "--backbone", "bert", "--data", "hostile.csv", "--quiet", "--report"]
        invoke(["audit", *hostile, "hostile-audit.html"])
        invoke(["transfer", *hostile, "hostile-transfer.html", "--seeds", "1"])
    return folder


@pytest.mark.parametrize("name", [*PAGES, *ANSWERS])
def test_no_serious_fault_no_request_no_sideways_scrolling(browser: Browser, pages: Path, name: str):
    page = pages / f"{name}.html"
    for width in (400, 1280):
        for dark in (False, True):
            browser.show(page, width=width, dark=dark)
            assert browser.ask("document.documentElement.scrollWidth") <= width
            assert browser.faults() == [], (width, dark)
            assert browser.requests() == []
    assert page.stat().st_size < 2_000_000


@pytest.mark.parametrize("name", [*PAGES, *ANSWERS])
def test_everything_is_there_without_scripts(browser: Browser, pages: Path, name: str):
    said = "document.body.innerText.replace(/[\\u2009\\u2191\\u2193\\u2195]/g, '').replace(/\\s+/g, ' ')"
    browser.show(pages / f"{name}.html")
    with_scripts = browser.ask(said)
    assert browser.ask("document.querySelectorAll('th button').length") or not browser.ask(
        "document.querySelectorAll('table.sorts').length"
    )
    browser.show(pages / f"{name}.html", scripts=False)
    assert browser.ask("document.querySelectorAll('th button').length") == 0
    assert browser.ask(said) == with_scripts
    assert len(with_scripts) > 200


@pytest.mark.parametrize("name", ["texts", "comparison", "transfer"])
def test_tables_sort_by_numbers_and_by_names(browser: Browser, pages: Path, name: str):
    browser.show(pages / f"{name}.html")
    table = "[...document.querySelectorAll('table.sorts')].at(-1)"
    heads = browser.ask(f"[...{table}.tHead.rows[0].cells].map(c => c.classList.contains('number'))")
    for column, numbers in enumerate(heads):
        read = (
            f"[...{table}.tBodies[0].rows].map(r => r.cells[{column}].dataset.value ?? r.cells[{column}].textContent)"
        )
        click = f"{table}.tHead.rows[0].cells[{column}].querySelector('button').click()"
        before = browser.ask(read)
        browser.ask(click)
        rising = browser.ask(read)
        browser.ask(click)
        falling = browser.ask(read)
        assert sorted(rising) == sorted(falling) == sorted(before)
        if numbers:
            assert [float(each) for each in rising] == sorted(map(float, before))
            assert [float(each) for each in falling] == sorted(map(float, before), reverse=True)
        assert browser.ask(f"{table}.tHead.rows[0].cells[{column}].getAttribute('aria-sort')") == "descending"


@pytest.mark.parametrize("name", ["images", "comparison", "audit"])
def test_pages_print(browser: Browser, pages: Path, name: str):
    browser.show(pages / f"{name}.html", dark=True)
    printed = base64.b64decode(browser.driver.print_page())
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 1


@pytest.mark.parametrize("name", ["hostile", "hostile-comparison", "hostile-audit", "hostile-transfer"])
def test_texts_labels_and_names_that_would_be_obeyed_are_only_shown(browser: Browser, pages: Path, name: str):
    browser.show(pages / f"{name}.html", width=400)
    assert "owned" not in browser.ask("document.title")
    assert browser.ask("document.querySelectorAll('script').length") == 1
    assert browser.ask("document.querySelectorAll('style').length") == 1
    strange = "iframe, form, base, link, object, embed, [onload], [onerror], [onmouseover], [style]"
    assert browser.ask(f"document.querySelectorAll('{strange}').length") == 0
    assert browser.ask("[...document.querySelectorAll('a')].every(a => a.getAttribute('href').startsWith('#'))")
    assert browser.ask("[...document.images].every(i => i.src.startsWith('data:'))")
    assert browser.requests() == []
    assert browser.ask("document.documentElement.scrollWidth") <= 400
    # What can be shown is shown as it was written.
    shown = browser.ask("document.body.textContent")
    assert "<script>document.title='owned'</script>" in shown
    if name in ("hostile", "hostile-transfer"):  # the others show what occurs in their rows
        assert all(printable(text) in " ".join(shown.split()) for text in HOSTILE if len(text) < 100)
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_a_comparison_shows_the_rows_that_runs_kept(browser: Browser, pages: Path):
    browser.show(pages / "comparison.html")
    last = "[...document.querySelectorAll('section')].at(-1)"
    if browser.ask(f"{last}.querySelector('h2').textContent") == "Rows on which they disagree":
        assert browser.ask(f"{last}.querySelectorAll('.card').length") > 0
        assert browser.ask(f"{last}.querySelectorAll('img').length") > 0


def test_both_rows_of_a_copy_stand_side_by_side(browser: Browser, pages: Path):
    browser.show(pages / "audit.html")
    cards = browser.ask(
        "[...document.querySelectorAll('.card')].map(c => [c.querySelectorAll('img').length, c.textContent])"
    )
    (both,) = [(count, text) for count, text in cards if "copy.png" in text and "class0/0.png" in text]
    assert both[0] == 2


def test_a_file_of_many_runs_and_classes_stays_small(browser: Browser, pages: Path, tmp_path: Path):
    names = [f"a class with a rather long name, number {k}" for k in range(200)]
    made = []
    for seed in range(6):
        labels, scores = classifier(2000, 200, 0.5 + seed / 20, seed)
        made.append(str(write_run(tmp_path / f"run{seed}", labels=labels, scores=scores, names=names)))
    page = tmp_path / "many.html"
    invoke(["report", *made, "--out", str(page)])
    assert page.stat().st_size < 2_000_000
    browser.show(page, width=400)
    assert browser.ask("document.documentElement.scrollWidth") <= 400
    assert browser.faults() == []

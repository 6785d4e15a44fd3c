"""Every command and every block of the README and of docs/ runs, what is generated is up to date, and links lead on."""

from __future__ import annotations

import ast
import csv
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import house
import pages
import pytest
import runs
from fake_plugins import Site
from hub_content import add_clip, add_dinov2, add_dinov3, add_llama, add_usual
from hub_server import Hub
from pages import PAGES, ROOT, WHY_NOT_RUN, Reader
from warm import Warm

from hftl import samples
from hftl.cli import build_app
from hftl.plugins import hookspecs
from hftl.recipes import field_names

sys.path.append(str(ROOT / "docs"))

import generate

TOKEN = "hf_canary_docs"
HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("hftl_"))
README, PLUGINS = ROOT / "README.md", ROOT / "docs" / "plugins.md"


# ── every block runs ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that runs commands against a Hub which has what the pages name; all pages share its stored features."""
    folder, content = tmp_path_factory.mktemp("warm"), tmp_path_factory.mktemp("content")
    installed = folder / "installed"
    programs = {
        "hftl": ["hftl"],
        "python-session": ["python_session"],
        "pytest": ["pytest", "-q", "-p", "no:cacheprovider"],
    }
    with Hub() as hub:
        hub.user("me", TOKEN)
        add_usual(hub, content)
        add_dinov2(hub, content / "dinov2")
        add_dinov3(hub, content / "dinov3")
        add_llama(hub, content / "llama")
        add_clip(hub, content / "clip")
        # What opens a page in a browser opens none here.
        given = {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)), "BROWSER": "true"}
        environment = hub.environment(folder, TOKEN, **given)
        with Warm(installed, environment, programs) as running:
            # `pip install -e FOLDER`, into the reader's own folder and without an index.
            pip = running.programs / "pip"
            options = "-q --no-deps --no-index --no-build-isolation --target ."
            pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip install {options} "./$3"\n')
            pip.chmod(0o755)
            yield running


@pytest.fixture
def reader(warm: Warm, tmp_path: Path) -> Reader:
    """A folder as the pages' reader stands in: the recipes, some pictures, some tables."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("pretrain", "__pycache__"))
    runs.write_images(tmp_path / "photos")
    write_tables(tmp_path)
    three = next(row for row in samples.DATASETS["digits"]()["test"] if str(row.label) == "3")
    (tmp_path / "digit.png").write_bytes(three.encoded)
    return Reader(warm, Site(tmp_path))


def write_tables(folder: Path) -> None:
    """Tables under the names that pages use: of intents, reviews, pairs, films with several genres, and scores."""
    good = ("I loved it", "a joy from start to end", "the sound is superb", "it simply works", "worth every penny")
    bad = ("it broke on day two", "a waste of money", "far too loud", "I sent it back", "never again")
    reviews = [*((text, "good") for text in good), *((text, "bad") for text in bad)]
    intents = [("my card is lost", "lost card"), ("what is the rate of exchange", "exchange rate")]
    animals = ("cat", "dog", "bird")
    pairs = [(a, b, "same" if a == b else "other") for a in animals for b in animals]
    films = [
        ("a ghost in the attic", "horror"),
        ("two clowns fall in love", "comedy|romance"),
        ("a wedding at sea", "romance"),
        ("a vampire tells jokes", "comedy|horror"),
    ]
    scores = [("awful", 1.0), ("fair", 2.5), ("superb", 4.0)]
    tables: dict[str, list[tuple[object, ...]]] = {
        "intents": [("text", "intent"), *((f"{text}, {i}", intent) for i in range(20) for text, intent in intents)],
        "tickets": [
            ("id", "text", "intent"),
            *((i, f"{text}, {i}", intent) for i in range(20) for text, intent in intents),
        ],
        "questions": [
            ("text", "intent"),
            *((f"{text}, {i}", intent) for i in range(20) for text, intent in intents),
            *((f"will it rain on day {i}", "oos") for i in range(10)),
        ],
        "photos": [("photo",), *((f"photos/class{i}/0.png",) for i in range(3))],
        "reviews": [("text", "label"), *((f"{text}, number {i}", label) for i in range(5) for text, label in reviews)],
        "pairs": [
            ("sentence1", "sentence2", "label"),
            *((f"{a} {i}", f"the {b} {i}", label) for i in range(6) for a, b, label in pairs),
        ],
        "films": [("text", "genres"), *((f"{text}, part {i}", genres) for i in range(10) for text, genres in films)],
        "scores": [("text", "score"), *((f"{word} {i}", score + i / 10) for i in range(10) for word, score in scores)],
    }
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    (folder / "names").mkdir()
    for seed, (split, rows) in enumerate({"train": 48, "test": 16}.items()):
        runs.write_sentences(folder / "names" / f"{split}.jsonl", rows, seed=seed)
    texts = [str(text) for _, text, _ in tables["tickets"][1:]]
    (folder / "lines.txt").write_text("\n".join(texts))
    (folder / "tickets.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


# What these tell is tested by tests of their own as well; HFTL_LONG=1 runs their blocks too.
LONG_PAGES = (
    *("bare.md", "finetune.md", "llm.md", "onnx.md", "plugins.md", "predict.md", "scale.md", "scout.md"),
    *("selection.md", "thresholds.md", "tokens.md", "tuning.md"),
)
READ = [page for page in PAGES if os.environ.get("HFTL_LONG") or page.name not in LONG_PAGES]


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_every_block_of_the_page_does_what_it_says(page: Path, reader: Reader) -> None:
    reader.read(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_escapes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = pages.blocks(page)
    assert len(re.findall(r"^ *```", text, re.M)) == 2 * len([b for b in found if b.kind not in ("given", "installed")])
    # Indented text would be a block of another kind.
    assert re.findall(r"\n\n {4,}(?![-*\d ]).*", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)) == []
    unknown = {block.not_run for block in found} - {"", pages.MAIN_JOB, pages.TESTS, *WHY_NOT_RUN}
    assert unknown == set()


# ── what the README and the page on plugins show ─────────────────────────────────────────────────────────────────────


def test_the_recipe_shown_is_the_recipe_there() -> None:
    shown = next(block.text for block in pages.blocks(README) if "@recipe" in block.text)
    assert shown == (ROOT / "recipes" / "vit_flowers.py").read_text()


def test_ci_runs_the_command_of_the_readme() -> None:
    (command,) = [block.text for block in pages.blocks(README) if block.not_run == pages.TESTS]
    assert command.startswith("python3 -m venv")
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()


def test_the_page_on_plugins_shows_what_is_scaffolded() -> None:
    # The tutorial's test file is the scaffold's, but for comments.
    scaffolded = (Path(hookspecs.__file__).parents[1] / "scaffold" / "plugin" / "test.py.jinja").read_text()
    assert 'check_backbone("{{ name }}")' in scaffolded
    assert 'check_backbone("my-vit")' in PLUGINS.read_text()


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_documented(hook: str) -> None:
    found = re.search(rf"^### {hook}\n(.*?)(?=^##|\Z)", PLUGINS.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"docs/plugins.md has no section on {hook}"
    section = found.group(1)
    specification = getattr(hookspecs, hook)
    signature = f"{hook}{inspect.signature(specification)}".replace("'", "")
    assert re.search(r"```text\n(.*?)\n```", section).group(1) == signature
    doc = inspect.getdoc(specification) or ""
    version = re.search(r"Since (\d+\.\d+)\.", doc)
    assert version, f"{hook}: its docstring does not say since when"
    assert f"Since {version.group(1)}." in section
    assert "Called" in section
    assert "Called" in doc
    # Its example, which the test above runs.
    assert f"@hftl.hookimpl\ndef {hook}(" in section


# ── what is generated, quoted and linked ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_what_is_generated_is_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generate.generated(text) == text, "run: python docs/generate.py"


def test_every_field_and_every_command_is_on_its_page() -> None:
    recipes = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    fields = {field.rpartition(".")[2] for field in field_names()}
    assert {field for field in fields if f"\n| `{field}` |" not in recipes} == set()
    assert set(re.findall(r"^### hftl (.*)$", (ROOT / "docs" / "commands.md").read_text(), re.M)) == commands_of_hftl()


def commands_of_hftl() -> set[str]:
    """All commands and those of their groups, but for what plugins add."""
    app = build_app()
    own = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    inner = {
        f"{name} {command.name or command.callback.__name__}"
        for name, group in groups.items()
        for command in group.registered_commands
    }
    return own | {name for name in groups if name == "cache"} | inner


QUOTED = re.findall(r"\*\*`(.+?)`\*\*", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))


def texts_of_hftl() -> list[str]:
    """Every text in hftl's code, with an ellipsis in place of what is filled in."""
    return [
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in getattr(node, "values", [node]))
        for _, tree in house.modules(ROOT / "hftl").items()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]


def test_every_message_that_is_explained_is_still_one_of_hftl_s() -> None:
    known = texts_of_hftl()
    assert len(QUOTED) > 50
    gone = []
    for message in QUOTED:
        # What a message begins with may be put before it elsewhere: a file's name, or the backbone's.
        parts = [re.escape(part) for part in re.sub("^…[:;]? ", "", message).split("…")]
        assert max(map(len, parts)) > 7, f"nothing of {message!r} says which one it is"
        if not any(re.search(".*".join(parts), text, re.S) for text in known):
            gone.append(message)
    assert gone == []


def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = r"<(?:script|img|iframe|link(?! rel=\"(?:canonical|prev|next)\"))[^>]*(?:src|href)=\"?(?:https?:)?//"
    built = sorted((tmp_path / "site").rglob("*.html"))
    assert [file.name for file in built if re.search(loaded, file.read_text(encoding="utf-8"))] == []
    assert {page.stem for page in PAGES[1:]} | {"log", "changelog"} <= {file.stem for file in built}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_and_every_command_that_the_text_names_is_there(page: Path) -> None:
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    fields = {field.rpartition(".")[2].replace("_", "-") for field in field_names()}
    known = set(re.findall(r"--([a-z][a-z0-9-]*)", commands)) | fields | {f"no-{field}" for field in fields}
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    spans = re.findall(r"`([^`]+)`", text)
    # accelerate's flags are written with underscores, pip's and git's stand in commands of their own.
    named = {
        flag for span in spans if not span.startswith(("pip ", "git ")) for flag in re.findall(r"--([a-z][\w-]*)", span)
    }
    assert {flag for flag in named if "_" not in flag} <= known
    call = r"^hftl ([a-z][a-z-]*)(?: (?=[a-z]+$)([a-z]+))?"
    called = {" ".join(words) for span in spans for words in re.findall(call, span)}
    assert {words.split()[0] for words in called} <= {command.split()[0] for command in commands_of_hftl()}


def test_the_map_names_every_room_and_none_that_is_gone() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1:3] for row in re.findall(r"^\| `.*$", text, re.M)]
    floors = {name for floor, _ in rows for name in re.findall(r"`(\w+)/?`", floor)}
    tomllib = pytest.importorskip("tomllib")
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ][0]
    rooms = {room.strip() for layer in contract["layers"] for room in layer.split("|")} - {"__main__"}
    named = {name for row in rows for cell in row for name in re.findall(r"`([a-z_]+)`", cell)}
    there = {path.stem for path in (ROOT / "hftl").rglob("*")}
    assert rooms <= floors | {name.rpartition("/")[2] for name in floors}
    assert {name for name in named if name not in there} == set()

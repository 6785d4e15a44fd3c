"""Every command in the README runs, and its recipe is the one in recipes/."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from hub_client import Client, hftl
from hub_content import DINOV2, add_dinov2, add_flowers, add_vit
from hub_server import Hub

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TOKEN = "hf_canary_readme"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.M | re.S)


COMMANDS = [line for block in blocks("console") for line in block.splitlines() if line.startswith("hftl ")]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    content, home = tmp_path_factory.mktemp("content"), tmp_path_factory.mktemp("home")
    with Hub() as hub:
        hub.user("me", TOKEN)
        add_vit(hub, content / "vit")
        add_dinov2(hub, content / "dinov2", DINOV2)
        add_flowers(hub, content)
        with Client(hub, home, TOKEN, HFTL_CACHE=str(home / "cache")) as running:
            yield running


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader stands in: the recipes, some photos, and a file of intents."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    runs.write_images(folder / "photos")
    with (folder / "intents.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "intent"])
        for i in range(20):
            writer.writerow([f"my card number {i} is lost", "lost card"])
            writer.writerow([f"what is the rate of exchange on day {i}", "exchange rate"])
    return folder


def test_every_command_runs_in_order(client: Client, checkout: Path):
    client(os.chdir, str(checkout))
    assert len(COMMANDS) > 12
    for command in COMMANDS:
        status, _, error = client(hftl, *shlex.split(command)[1:])
        assert status == 0, (command, error)
    assert (checkout / "runs" / "dino" / "model" / "model.safetensors").exists()
    assert (checkout / "digits.parquet").exists()
    assert (checkout / "hftl-mine").is_dir()


def test_the_recipe_shown_is_the_recipe_there():
    shown = next(block for block in blocks("python") if "@recipe" in block)
    assert shown == (ROOT / "recipes" / "vit_flowers.py").read_text()


def test_the_python_shown_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    (shown,) = re.findall(r"^<!-- run by the tests -->\n```python\n(.*?)^```$", README, re.M | re.S)
    exec(shown, {})
    accuracy, f1 = [float(line) for line in capsys.readouterr().out.splitlines() if re.fullmatch(r"[\d.]+", line)]
    assert accuracy > 0.98
    assert f1 > 0.98


def test_the_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_ci_runs_the_command_of_the_readme():
    marked = re.search(r"^<!-- tests -->\n```console\n(.*)\n```$", README, re.M)
    assert marked
    assert marked[1].startswith("python3 -m venv")
    assert "<!-- tests -->" in (ROOT / ".ci" / "run").read_text()

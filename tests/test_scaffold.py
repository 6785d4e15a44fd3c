"""What ``hftl new`` writes installs, runs and passes its own tests, before a stranger has changed a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_plugins import Site

SCAFFOLD = Path(__file__).parent.parent / "hftl" / "scaffold"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A scaffolded plugin, installed."""
    site = Site(tmp_path_factory.mktemp("site"))
    made = site.hftl("new", "plugin", "my-vit")
    assert made.returncode == 0, made.stderr
    assert "pip install -e 'hftl-my-vit[test]'" in made.stdout
    pip = ["pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--no-warn-script-location"]
    command = [sys.executable, "-m", *pip, "--target", str(site.folder), "./hftl-my-vit"]
    done = subprocess.run(command, cwd=site.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site.names.append("my-vit")
    return site


def test_scaffolded_plugin_passes_its_own_tests(site: Site) -> None:
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "hftl-my-vit"]
    done = subprocess.run(
        pytest_run, cwd=site.folder, env=site.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_scaffolded_plugin_is_listed(site: Site) -> None:
    row = site.plugins()["my-vit"]
    assert row["gives"] == ["backbone my-vit"]
    assert row["package"] == "hftl-my-vit"
    assert row["error"] is None
    rows = json.loads(site.hftl("backbones", "--json").stdout)
    assert next(row for row in rows if row["name"] == "my-vit")["plugin"] == "hftl-my-vit 0.1.0"


def test_scaffolded_backbone_is_about_twenty_lines(site: Site) -> None:
    code = (site.folder / "hftl-my-vit" / "hftl_my_vit" / "__init__.py").read_text()
    statements = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(statements) <= 22


def test_scaffolded_recipe_runs_and_passes_its_test(tmp_path: Path) -> None:
    site = Site(tmp_path)
    made = site.hftl("new", "recipe", "my-flowers")
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == "    hftl run my_flowers.py"
    shown = site.hftl("run", "my_flowers.py", "--folds", "3", "--show")
    assert "folds=3" in shown.stdout
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_flowers.py"]
    done = subprocess.run(pytest_run, cwd=tmp_path, env=site.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["plugin", "My_ViT"], "use small letters, digits and single dashes, such as my-vit"),
        (["plugin", "../x"], "such as x"),
        (["recipe", "1"], "use small letters, digits and single dashes\n"),
        (["plugin", "twice"], "hftl-twice is there already"),
        (["recipe", "twice"], "twice.py is there already"),
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, arguments: list[str], why: str) -> None:
    site = Site(tmp_path)
    (tmp_path / "hftl-twice").mkdir()
    (tmp_path / "twice.py").write_text("mine")
    done = site.hftl("new", *arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "twice.py").read_text() == "mine"


def test_name_with_prefix_is_not_doubled(tmp_path: Path) -> None:
    assert Site(tmp_path).hftl("new", "plugin", "hftl-my-vit").returncode == 0
    assert (tmp_path / "hftl-my-vit" / "hftl_my_vit" / "__init__.py").exists()


def test_templates_are_in_the_wheel() -> None:
    tomllib = pytest.importorskip("tomllib")
    package = SCAFFOLD.parent
    data = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["hftl"]
    shipped = {path for pattern in data for path in package.glob(pattern)}
    assert set(SCAFFOLD.rglob("*.jinja")) <= shipped
    assert (SCAFFOLD / "plugin" / "module.py.jinja") in shipped

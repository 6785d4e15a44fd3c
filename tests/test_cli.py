"""The command line as a whole: what it costs to start, and what is public."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import Cli

import hftl

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "sklearn", "numpy", "pyarrow")


def loaded_by(code: str) -> tuple[set[str], float]:
    """Which heavy packages a fresh process imports, and the CPU seconds it takes."""
    tail = (
        f"\nimport sys, json, time\nfound = [[m for m in {HEAVY!r} if m in sys.modules], time.process_time()]"
        "\nprint('\\n' + json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    modules, seconds = json.loads(done.stdout.splitlines()[-1])
    return set(modules), seconds


HELP = """
import sys
sys.argv = ["hftl", {0}]
from hftl.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""


def test_importing_brings_nothing_heavy():
    assert loaded_by("import hftl, hftl.cli")[0] == set()
    assert loaded_by("from hftl import BackboneSpec, hookimpl, DataError")[0] == set()


@pytest.mark.parametrize("arguments", ["'--help'", "'run', '--help'", "'backbones'", "'plugins', '--all'"])
def test_light_commands_bring_nothing_heavy(arguments: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HFTL_PLUGINS", "")
    modules, seconds = loaded_by(HELP.format(arguments))
    assert modules == set()
    # The promise is 0.4 s; the bound leaves room for a loaded machine.
    assert seconds < 2.0


def test_public_names_are_exactly_all_and_sorted():
    assert hftl.__all__ == sorted(hftl.__all__)
    assert set(hftl.__all__) == set(hftl._HOME)
    for name in hftl.__all__:
        assert getattr(hftl, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = hftl.nothing


def test_plugins_and_recipes_import_only_public_names():
    root = Path(__file__).parent.parent
    public = {"hftl", "hftl.testing", "hftl.samples"}
    for path in (*root.glob("recipes/*.py"), *root.glob("plugins/*/hftl_*/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            private = [name for name in names if name and name.startswith("hftl.") and name not in public]
            assert not private, (path, private)


def test_lists_are_json_for_programs(cli: Cli):
    backbones = json.loads(cli.ok("backbones", "--json", "--modality", "text"))
    assert {row["modality"] for row in backbones} == {"text"}
    assert all({"name", "license", "plugin", "parameters"} <= row.keys() for row in backbones)
    assert "sentence-transformers/all-MiniLM-L6-v2" in [row["name"] for row in backbones]
    rows = {row["what"]: row["state"] for row in json.loads(cli.ok("doctor", "--json"))}
    assert rows["hftl"] == hftl.__version__
    assert "offline" in rows["hub"]
    assert isinstance(json.loads(cli.ok("recipes", "--json")), list)


def test_no_token_is_printed(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    assert "hf_canary" not in cli.ok("doctor")
    assert "a token is set" in cli.out


def test_the_cache_is_looked_after(cli: Cli, tmp_path: Path):
    import runs
    import tiny
    from test_run import write_recipe

    backbone = tiny.save("vit", tmp_path / "backbone")
    cli.ok("run", write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data")), "--out", "run")
    (space,) = json.loads(cli.ok("cache", "ls", "--json"))
    assert (space["rows"], space["modality"], space["pooling"]) == (18, "image", "native")
    assert json.loads(cli.ok("cache", "stats", "--json"))[0]["rows"] == 18
    assert "18" in cli.ok("cache", "verify")
    (shard,) = Path(space["path"]).glob("shards/*")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli("cache", "verify") == 1
    assert "set aside" in cli.err
    assert "no size" in cli.refused("cache", "gc", "much")
    assert "write 20G" in cli.refused("cache", "gc", "20")
    assert "--all" in cli.refused("cache", "clear")
    # A run in this very process has the space open.
    assert "say --yes" in cli.refused("cache", "clear", "--all", "--force")
    assert len(json.loads(cli.ok("cache", "clear", "--all", "--force", "--yes", "--json"))) == 1
    assert json.loads(cli.ok("cache", "ls", "--json")) == []

"""`hftl runs`: every run below a folder in a line, whatever else lies there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import runs
import tiny
from run_folders import HOSTILE, classifier, write_run
from runs import Cli

from hftl.recipes import Recipe
from hftl.terminal import Terminal


def made(path: Path, right: float = 0.9, **changes) -> Path:
    labels, scores = classifier(60, 2, right, seed=1)
    return write_run(path, labels=labels, scores=scores, **changes)


def listed(cli: Cli, *arguments: str | Path) -> list[dict]:
    return json.loads(cli.ok("runs", *arguments, "--json"))


def test_a_real_run_is_listed_with_what_it_was_and_what_came_out(cli: Cli, tmp_path: Path):
    tiny.save("vit", tmp_path / "vit")
    runs.write_images(tmp_path / "photos")
    (tmp_path / "r.py").write_text(
        "from hftl import Head, Recipe, recipe\n\n@recipe\ndef mine() -> Recipe:\n"
        "    return Recipe(backbone='./vit', data='photos', method=Head(folds=2))\n"
    )
    cli.ok("run", "r.py")
    (run,) = listed(cli)
    folder = Path(run["folder"])
    assert folder.parent == Path("runs/mine")
    assert (run["recipe"], run["data"], run["method"], run["state"]) == ("mine", "photos", "head", "finished")
    assert run["score"] == runs.metrics(folder)["eval"]["accuracy"]
    assert run["seconds"] == runs.metrics(folder)["seconds"]["total"]
    # The folder is named by the local time at which the run began, and the record says it too.
    said = re.sub(r"\D", "", run["started"])[:14]
    assert abs(int(said) - int(folder.name.replace("-", ""))) <= 60
    shown = cli.ok("runs")
    assert str(folder) in shown
    assert f"{run['score']:.4f} accuracy" in shown


def test_the_newest_is_last_at_any_depth_and_unfinished_runs_are_marked(cli: Cli, tmp_path: Path):
    made(tmp_path / "runs" / "b" / "c" / "deep", started="2026-01-02T00:00:00+00:00")
    # The same moment as 01:00 in London, before the one above.
    made(tmp_path / "runs" / "new-york", started="2026-01-01T18:00:00-05:00")
    made(tmp_path / "runs" / "old", started="2020-01-01T00:00:00+00:00")
    stopped = made(tmp_path / "runs" / "stopped", started="2026-03-01T00:00:00+00:00")
    (stopped / "metrics.json").unlink()
    # A run's own folders are no place to look for runs.
    made(tmp_path / "runs" / "old" / "model" / "inside")
    found = listed(cli)
    assert [Path(run["folder"]).name for run in found] == ["old", "new-york", "deep", "stopped"]
    assert [run["state"] for run in found] == ["finished"] * 3 + ["unfinished"]
    assert found[-1]["score"] is None
    lines = [line for line in cli.ok("runs").splitlines() if "runs/" in line]
    assert "unfinished" in lines[-1]


def test_a_run_of_a_release_that_kept_no_time_is_as_old_as_its_record(cli: Cli, tmp_path: Path):
    run = made(tmp_path / "runs" / "old")
    assert json.loads((run / "recipe.json").read_text())["started"] == ""
    os.utime(run / "recipe.json", (1e9, 1e9))
    assert listed(cli)[0]["started"][:10] in ("2001-09-08", "2001-09-09")


def test_damaged_folders_are_named_and_never_fatal(cli: Cli, tmp_path: Path):
    root = tmp_path / "runs"
    made(root / "whole")
    for name, content in {
        "no-json": b"{",
        "other": b'{"title": "apple pie"}',
        "bytes": b"\xff\xfe\x00",
        "no-method": None,
        "list": b"[]",
        "empty": b"",
        "deep": b"[" * 100_000,
    }.items():
        run = made(root / name)
        if content is None:
            record = json.loads((run / "recipe.json").read_text())
            del record["recipe"]["method"]
            content = json.dumps(record).encode()
        (run / "recipe.json").write_bytes(content)
    (made(root / "no-time") / "recipe.json").write_text(
        (root / "whole" / "recipe.json").read_text().replace('"started": ""', '"started": "yesterday"')
    )
    (made(root / "metrics") / "metrics.json").write_text("nonsense")
    (made(root / "no-record") / "recipe.json").unlink()
    (root / "no-record" / "events.jsonl").touch()
    os.mkfifo(root / "whole" / "pipe")
    (root / "circle").symlink_to(root, target_is_directory=True)
    out = cli.ok("runs")
    damaged = [line for line in out.splitlines() if line.startswith("damaged: ")]
    assert len(damaged) == 10
    assert sum("runs/whole" in line for line in out.splitlines()) == 1
    by_name = {Path(run["folder"]).name: run for run in listed(cli)}
    assert by_name["whole"]["state"] == "finished"
    assert all(run["why"] for name, run in by_name.items() if name != "whole")


@pytest.mark.parametrize("columns", [80, 40, 200])
def test_no_name_is_cut_at_any_width(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int):
    long = "google/vit-base-patch16-224-in21k-of-a-long-name"
    made(tmp_path / "runs" / "a-recipe-with-a-name" / "20260101-120000", recipe=Recipe(backbone=long, data="x"))
    made(tmp_path / "runs" / "b")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert Terminal().is_terminal
    out = cli.ok("runs")
    assert "runs/a-recipe-with-a-name/20260101-120000" in out
    assert long in out
    assert "…" not in out
    if columns == 80:
        assert all(len(line) <= 80 for line in out.splitlines() if long not in line)


def test_there_may_be_no_run_and_there_must_be_a_folder(cli: Cli, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert cli.ok("runs", "empty") == "no run in empty or below it\n"
    assert listed(cli, "empty") == []
    assert "no folder 'runs'" in cli.refused("runs")


def test_hostile_names_do_nothing(cli: Cli, tmp_path: Path):
    for number, text in enumerate(HOSTILE):
        name = text.replace("/", "_").replace("\0", "_")[:200]
        made(tmp_path / "runs" / f"{number}{name}", recipe=Recipe(backbone=text, data=text), name=text)
    (tmp_path / "runs" / f"bad{HOSTILE[20]}").mkdir()
    (tmp_path / "runs" / f"bad{HOSTILE[20]}" / "recipe.json").write_text(HOSTILE[21])
    for arguments in ([], ["--json"]):
        out = cli.ok("runs", *arguments)
        assert [c for c in out if not (c.isprintable() or c in "\n\u200c\u200d")] == []
    assert {run["backbone"] for run in json.loads(out)} >= set(HOSTILE)


def test_a_score_that_is_no_number_is_none(cli: Cli, tmp_path: Path):
    run = made(tmp_path / "runs" / "a")
    text = re.sub(r'"accuracy": [\d.]+', '"accuracy": NaN', (run / "metrics.json").read_text(), count=1)
    (run / "metrics.json").write_text(text)
    assert listed(cli)[0]["score"] is None

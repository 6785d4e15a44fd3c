"""Every hook is called, when and with what its specification says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_plugins import Site

from hftl.plugins import hookspecs

HOOKS = sorted(name for name in vars(hookspecs) if name.startswith("hftl_"))

# One plugin with every hook, each of which notes that it was called and with what.
WITNESS = """
import json
import os
import sys
from importlib.resources import files
from pathlib import Path

import hftl

def note(hook, **what):
    with open(os.environ["WITNESS"], "a") as file:
        file.write(json.dumps({"hook": hook, "torch": "torch" in sys.modules, **what}, default=str) + "\\n")

@hftl.hookimpl
def hftl_register_backbones(register):
    note("hftl_register_backbones")
    register(hftl.BackboneSpec("witnessed", "image", load))

@hftl.hookimpl
def hftl_resolve_backbone(ref):
    note("hftl_resolve_backbone", ref=ref)
    return hftl.BackboneSpec(ref, "image", load) if ref == "family:member" else None

@hftl.hookimpl
def hftl_register_recipes(register):
    note("hftl_register_recipes")
    register("witnessed", "witness:witnessed")

@hftl.hookimpl
def hftl_register_metrics(register):
    note("hftl_register_metrics")
    register("mean_logit", mean_logit)
    register("undefined", lambda logits, labels, task: {"undefined": float("nan"), "endless": float("inf")})
    register("broken", lambda logits, labels, task: 1 / 0)

@hftl.hookimpl
def hftl_register_commands(app):
    note("hftl_register_commands", app=type(app).__name__)
    app.command("witness")(lambda: print("seen"))

@hftl.hookimpl
def hftl_run_start(recipe, folder):
    note("hftl_run_start", keys=sorted(recipe), files=sorted(os.listdir(folder)))

@hftl.hookimpl
def hftl_log(event):
    note("hftl_log", event=event)

@hftl.hookimpl
def hftl_run_end(metrics, folder):
    note("hftl_run_end", metrics=metrics, files=sorted(os.listdir(folder)))

def load(options):
    return hftl.ImageBackbone(hftl.Source.of(str(files("hftl") / "samples" / "glyph-vit-tiny")))

def mean_logit(logits, labels, task):
    note("mean_logit", shapes=[list(logits.shape), list(labels.shape)], task=task, dtype=logits.dtype)
    return {"mean_logit": logits.mean()}

@hftl.recipe
def witnessed():
    return hftl.Recipe(backbone="family:member", data="sample:digits", method=hftl.Head(folds=2))
"""
FAILS_LATE = """
import hftl

@hftl.hookimpl
def hftl_run_start(recipe):
    raise SystemExit("no more")

@hftl.hookimpl
def hftl_log(event):
    raise RuntimeError("must not be called any more")

@hftl.hookimpl
def hftl_register_metrics(register):
    register("clash", lambda logits, labels, task: {"accuracy": 2.0})
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the hooks of a plugin witnessed in one run, beside a plugin that fails when the run starts."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.install("witness", WITNESS)
    site.install("fails-late", FAILS_LATE)
    notes = site.folder / "notes.jsonl"
    done = site.hftl("run", "witnessed", "--out", "run", "--quiet", WITNESS=str(notes))
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = {"stderr": [{"text": done.stderr}]}
    for line in notes.read_text().splitlines():
        found.setdefault(json.loads(line)["hook"], []).append(json.loads(line))
    found["events"] = [json.loads(line) for line in (site.folder / "run" / "events.jsonl").read_text().splitlines()]
    found["metrics"] = [json.loads((site.folder / "run" / "metrics.json").read_text())]
    found["command"] = [{"text": site.hftl("witness", WITNESS=str(notes)).stdout}]
    return found


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_is_called(seen: dict[str, list[dict[str, Any]]], hook: str) -> None:
    assert seen.get(hook), f"no command calls {hook}, or this test does not use it"


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if "register" in hook and "metrics" not in hook])
def test_registration_comes_before_torch(seen: dict[str, list[dict[str, Any]]], hook: str) -> None:
    assert not seen[hook][0]["torch"]


def test_resolve_is_asked_for_what_nobody_registered(seen: dict[str, list[dict[str, Any]]]) -> None:
    assert {call["ref"] for call in seen["hftl_resolve_backbone"]} == {"family:member"}


def test_run_start_and_end(seen: dict[str, list[dict[str, Any]]]) -> None:
    (start,), (end,) = seen["hftl_run_start"], seen["hftl_run_end"]
    assert {"recipe", "backbone", "data", "versions"} <= set(start["keys"])
    assert "recipe.json" in start["files"]
    assert "metrics.json" not in start["files"]
    assert {"metrics.json", "model", "predictions.parquet"} <= set(end["files"])
    assert end["metrics"] == seen["metrics"][0]


def test_log_gives_each_line_of_events(seen: dict[str, list[dict[str, Any]]]) -> None:
    assert [call["event"] for call in seen["hftl_log"]] == seen["events"]


def test_metrics_are_merged_and_a_broken_one_is_left_out(seen: dict[str, list[dict[str, Any]]]) -> None:
    (call,) = seen["mean_logit"]
    assert call["shapes"] == [[599, 10], [599]] or call["shapes"][0][1] == 10
    assert (call["task"], call["dtype"]) == ("single_label", "float32")
    evaluated = seen["metrics"][0]["eval"]
    assert isinstance(evaluated["mean_logit"], float)
    assert evaluated["undefined"] is evaluated["endless"] is None, "JSON has neither"
    assert "broken" not in evaluated
    assert evaluated["accuracy"] < 1.5
    assert "metric 'broken' failed and is left out: ZeroDivisionError" in seen["stderr"][0]["text"]


def test_plugin_that_fails_in_a_run_costs_nobody_the_run(seen: dict[str, list[dict[str, Any]]]) -> None:
    said = seen["stderr"][0]["text"]
    assert "plugin 'fails-late' (fails-late 1.2) is left out: hftl_run_start failed: SystemExit: no more" in said
    assert "must not be called" not in said


def test_command_of_a_plugin(seen: dict[str, list[dict[str, Any]]]) -> None:
    assert seen["command"][0]["text"] == "seen\n"


def test_metrics_in_conflict_are_errors(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for name in ("one", "two"):
        site.install(
            name,
            """
            import hftl

            @hftl.hookimpl
            def hftl_register_metrics(register):
                register("ece", lambda logits, labels, task: {"ece": 0.5})
            """,
        )
    ask = (
        "import numpy as np\nfrom hftl.errors import PluginError\nfrom hftl.plugins.registry import add_metrics\n"
        "values = {VALUES}\n"
        "try: add_metrics(values, np.zeros((2, 3), np.float32), np.zeros(2, np.int64), 'single_label')\n"
        "except PluginError as error: print(error)\n"
        "else: print(values)"
    )
    both = site.python(ask.replace("VALUES", ""))
    assert both == "metric 'ece' is claimed by two plugins, one and two; uninstall one, or choose with HFTL_PLUGINS"
    taken = site.python(ask.replace("VALUES", "'ece': 0.1"), HFTL_PLUGINS="one")
    assert taken.startswith("metric 'ece' of one gives 'ece', which is there already")
    assert site.python(ask.replace("VALUES", "'accuracy': 0.1"), HFTL_PLUGINS="one") == "{'accuracy': 0.1, 'ece': 0.5}"

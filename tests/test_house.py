"""What the house promises about itself: one name for one thing, short parameter lists, floors, one leaf of oddities."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import house
import pytest
import tiny
import torch
from accelerate import Accelerator

from hftl import foreign

HFTL = house.ROOT / "hftl"
# A command is called what the function is that it calls; a built-in's hook is called what the hook is.
MAY_STAND_TWICE = {"hftl_register_backbones", "hftl_resolve_backbone"}


def test_no_name_is_defined_in_two_modules() -> None:
    own = {
        name: [place for place in places if not place.startswith("cli/")] for name, places in house.homes(HFTL).items()
    }
    twice = {name: places for name, places in own.items() if len(places) > 1 and name not in MAY_STAND_TWICE}
    twice.pop("__getattr__", None)
    assert twice == {}


def test_no_function_has_more_than_six_positional_parameters() -> None:
    wide = [place for place, node in house.functions(HFTL) if house.positional(node) > 6 and not _is_command(place)]
    assert wide == []


def _is_command(place: str) -> bool:
    # typer makes a flag of each parameter.
    return place.startswith("cli/")


def test_imports_point_downwards_and_in_no_circle() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=house.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 kept, 0 broken" in done.stdout
    # Without the exceptions that a contract may have, and with what only type checkers see.
    assert len(house.upward_imports()) <= 2
    assert "ignore_imports" not in (house.ROOT / "pyproject.toml").read_text()


def test_only_tasks_compares_the_name_of_a_task() -> None:
    pattern = re.compile(r"task\s*(==|!=|is|is not|in)\s*[\[(\"'T]|[\"'](single_label|multi_label)[\"']")
    places = [
        f"{path.relative_to(HFTL)}:{number} {line.strip()}"
        for path, text in ((path, path.read_text(encoding="utf-8")) for path in sorted(HFTL.rglob("*.py")))
        if path.name != "tasks.py"
        for number, line in enumerate(house.without_docstrings(text), 1)
        if pattern.search(line) and "help=" not in line
    ]
    assert places == []


def test_a_module_begins_with_what_it_is() -> None:
    missing = [str(path) for path, tree in house.modules(HFTL).items() if not ast.get_docstring(tree)]
    assert missing == []


# ── private names of other libraries ─────────────────────────────────────────────────────────────────────────────────


def test_private_names_of_other_libraries_stand_in_one_leaf() -> None:
    libraries = "torch|accelerate|datasets|transformers|peft|evaluate"
    private = re.compile(rf"({libraries})[\w.]*\._[a-z]|import _[a-z]\w*$|\._fingerprint|\._no_split|_reset_state")
    places = [
        f"{path.name}:{number}"
        for path in sorted(HFTL.rglob("*.py"))
        if path.name != "foreign.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert places == []


def test_the_private_names_are_still_there() -> None:
    leaves, structure = foreign.tree_flatten({"a": [torch.ones(1)], "b": None})
    again = foreign.treespec_loads(foreign.treespec_dumps(structure))
    assert foreign.tree_unflatten(leaves, again) == {"a": leaves[:1], "b": None}
    model = tiny.model("vit")
    assert foreign.initializer(model) is not None
    assert foreign.block_classes(model)
    assert foreign.fingerprint(datasets.Dataset.from_dict({"a": [1]})) != foreign.fingerprint(
        datasets.Dataset.from_dict({"a": [2]})
    )
    # Another test of this process may have trained in another precision.
    foreign.forget_precision()
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    foreign.forget_precision()
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"
    # What hftl overrides of evaluate, so that a metric leaves no folder behind.
    assert callable(evaluate.Metric._build_data_dir)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="oneDNN is used with AVX-512 only")
def test_onednn_s_linear_layer_is_still_there() -> None:
    linear = foreign.onednn_linear()
    assert linear is not None
    x, weight, bias = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)
    torch.testing.assert_close(linear(x, weight, bias, "none", [], ""), x @ weight.T + bias, atol=1e-5, rtol=1e-5)

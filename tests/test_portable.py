"""What is promised for macOS and Windows, shown on whatever runs the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate import PartialState
from finetune import small

from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.protocol import Target
from hftl.frozen.features import features_of
from hftl.frozen.head import train_head
from hftl.frozen.view import View
from hftl.methods import Head
from hftl.plugins.spec import BackboneOptions
from hftl.store.store import FeatureStore

IMPORTS = """
import builtins, importlib, pkgutil
from importlib.util import find_spec

do_import = builtins.__import__

def as_on_windows(name, globals=None, *more, **named):
    # Other libraries look at the platform and import what this one has; only hftl is asked to do without.
    if name in ("resource", "fcntl") and (globals or {}).get("__name__", "").startswith("hftl"):
        raise ImportError(f"{globals['__name__']} imports {name}")
    return do_import(name, globals, *more, **named)

builtins.__import__ = as_on_windows
import hftl

names = [module.name for module in pkgutil.walk_packages(hftl.__path__, "hftl.")]
without = {"hftl.__main__"} | (set() if find_spec("deepspeed") else {"hftl.finetune.zero"})
for name in names:
    if name not in without:
        importlib.import_module(name)
print(len(names))
"""


def test_every_module_imports_without_resource_and_fcntl() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_the_memory_that_a_run_took_is_unknown_without_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    from hftl.finetune.memory import peak_memory_bytes

    assert (peak_memory_bytes(torch.device("cpu")) or 0) > 1 << 20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_bytes(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "method"),
    [("bert", Head(folds=2)), ("roberta", Head()), ("bert", Head(pooling="mean", hidden=4))],
    ids=["solved", "replayed", "perceptron"],
)
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="shows that nothing goes to a device that is not there")
def test_heads_are_computed_where_there_is_float64(name: str, method: Head, tmp_path: Path) -> None:
    # This build of torch has no Apple GPU: any tensor that was moved to one would raise.
    PartialState(cpu=True)
    spec = hftl_resolve_backbone(str(tiny.save(name, tmp_path / name)))
    assert spec is not None
    backbone = spec.load(BackboneOptions())
    words = np.random.default_rng(0).choice(tiny.WORDS, (12, 4))
    data = small.vectors_data([" ".join(row) for row in words], [i % 2 for i in range(12)], ["no", "yes"])
    target = Target(backbone, backbone.config(data.task, data.label_names))
    view = View(method.pooling, method.mixed_precision)
    features = features_of(FeatureStore(tmp_path / "cache"), target, spec.origin, data, [view], quiet=True)

    trained = train_head(method, target, features, data, seed=0, device=torch.device("mps"))

    assert trained.logits.device.type == "cpu"
    # The training rows are the test rows.
    assert np.mean(trained.logits.argmax(1).numpy() == data.test.labels) > 0.5

"""Transfer learning with Hugging Face models on features that are computed once.

Importing hftl imports neither torch nor transformers: its public names are brought when they are first used.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hftl._version import __version__ as __version__

if TYPE_CHECKING:
    from hftl.backbones.pretrained import PretrainedBackbone
    from hftl.backbones.protocol import Backbone, Encoded
    from hftl.backbones.source import Source
    from hftl.backbones.text import TextBackbone
    from hftl.backbones.vision import ImageBackbone
    from hftl.convert import OnnxModel, to_onnx
    from hftl.errors import (
        BackboneError,
        BadRowError,
        ConvergenceError,
        CutError,
        DataError,
        HftlError,
        HubError,
        Interrupted,
        PluginError,
        RecipeError,
        StoreError,
        UserError,
    )
    from hftl.export.push import push
    from hftl.extraction import features
    from hftl.finished import Run
    from hftl.frozen.matrix import Features
    from hftl.hub.commit import Pushed
    from hftl.methods import Full, Head, LoRA, Partial
    from hftl.pipeline import run
    from hftl.plugins.hookspecs import hookimpl
    from hftl.plugins.spec import BackboneOptions, BackboneSpec
    from hftl.predict import Model, evaluate, load
    from hftl.recipes import Recipe, recipe
    from hftl.report.comparison import Comparison, compare
    from hftl.scout.advise import Advice, advise
    from hftl.scout.audit import Audit, audit
    from hftl.scout.curve import Curve, curve
    from hftl.scout.layers import Layers, layers
    from hftl.scout.rank import Ranking, rank
    from hftl.scout.transfer import Transfer, transfer
    from hftl.scout.zero_shot import ZeroShot, zero_shot
    from hftl.tasks import Task
    from hftl.tuning.tune import tune
    from hftl.tuning.tuned import Tuned

# In a notebook without ipywidgets the libraries below would begin with tqdm's advice to install them; what hftl draws
# itself needs none.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOME = {
    "Advice": "hftl.scout.advise",
    "Audit": "hftl.scout.audit",
    "Backbone": "hftl.backbones.protocol",
    "BackboneError": "hftl.errors",
    "BackboneOptions": "hftl.plugins.spec",
    "BackboneSpec": "hftl.plugins.spec",
    "BadRowError": "hftl.errors",
    "Comparison": "hftl.report.comparison",
    "ConvergenceError": "hftl.errors",
    "Curve": "hftl.scout.curve",
    "CutError": "hftl.errors",
    "DataError": "hftl.errors",
    "Encoded": "hftl.backbones.protocol",
    "Features": "hftl.frozen.matrix",
    "Full": "hftl.methods",
    "Head": "hftl.methods",
    "HftlError": "hftl.errors",
    "HubError": "hftl.errors",
    "ImageBackbone": "hftl.backbones.vision",
    "Interrupted": "hftl.errors",
    "Layers": "hftl.scout.layers",
    "LoRA": "hftl.methods",
    "Model": "hftl.predict",
    "OnnxModel": "hftl.convert",
    "Partial": "hftl.methods",
    "PluginError": "hftl.errors",
    "PretrainedBackbone": "hftl.backbones.pretrained",
    "Pushed": "hftl.hub.commit",
    "Ranking": "hftl.scout.rank",
    "Recipe": "hftl.recipes",
    "RecipeError": "hftl.errors",
    "Run": "hftl.finished",
    "Source": "hftl.backbones.source",
    "StoreError": "hftl.errors",
    "Task": "hftl.tasks",
    "TextBackbone": "hftl.backbones.text",
    "Transfer": "hftl.scout.transfer",
    "Tuned": "hftl.tuning.tuned",
    "UserError": "hftl.errors",
    "ZeroShot": "hftl.scout.zero_shot",
    "advise": "hftl.scout.advise",
    "audit": "hftl.scout.audit",
    "compare": "hftl.report.comparison",
    "curve": "hftl.scout.curve",
    "evaluate": "hftl.predict",
    "features": "hftl.extraction",
    "hookimpl": "hftl.plugins.hookspecs",
    "layers": "hftl.scout.layers",
    "load": "hftl.predict",
    "push": "hftl.export.push",
    "rank": "hftl.scout.rank",
    "recipe": "hftl.recipes",
    "run": "hftl.pipeline",
    "to_onnx": "hftl.convert",
    "transfer": "hftl.scout.transfer",
    "tune": "hftl.tuning.tune",
    "zero_shot": "hftl.scout.zero_shot",
}

__all__ = [
    "Advice",
    "Audit",
    "Backbone",
    "BackboneError",
    "BackboneOptions",
    "BackboneSpec",
    "BadRowError",
    "Comparison",
    "ConvergenceError",
    "Curve",
    "CutError",
    "DataError",
    "Encoded",
    "Features",
    "Full",
    "Head",
    "HftlError",
    "HubError",
    "ImageBackbone",
    "Interrupted",
    "Layers",
    "LoRA",
    "Model",
    "OnnxModel",
    "Partial",
    "PluginError",
    "PretrainedBackbone",
    "Pushed",
    "Ranking",
    "Recipe",
    "RecipeError",
    "Run",
    "Source",
    "StoreError",
    "Task",
    "TextBackbone",
    "Transfer",
    "Tuned",
    "UserError",
    "ZeroShot",
    "advise",
    "audit",
    "compare",
    "curve",
    "evaluate",
    "features",
    "hookimpl",
    "layers",
    "load",
    "push",
    "rank",
    "recipe",
    "run",
    "to_onnx",
    "transfer",
    "tune",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name == "sklearn":
        return import_module("hftl.sklearn")
    if name not in _HOME:
        raise AttributeError(f"module 'hftl' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

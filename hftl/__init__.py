"""Transfer learning with Hugging Face models on features that are computed once.

Importing hftl imports neither torch nor transformers: its public names are brought when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hftl.backbones.pretrained import PretrainedBackbone
    from hftl.backbones.protocol import Backbone, Encoded
    from hftl.backbones.source import Source
    from hftl.backbones.text import TextBackbone
    from hftl.backbones.vision import ImageBackbone
    from hftl.errors import (
        BackboneError,
        BadRowError,
        ConvergenceError,
        DataError,
        HftlError,
        HubError,
        Interrupted,
        PluginError,
        RecipeError,
        SplitError,
        StoreError,
        UserError,
    )
    from hftl.hookspecs import hookimpl
    from hftl.methods import Full, Head, LoRA, Partial
    from hftl.pipeline import compute_features, run
    from hftl.recipes import Recipe, recipe
    from hftl.registry import BackboneOptions, BackboneSpec

_HOME = {
    "Backbone": "hftl.backbones.protocol",
    "BackboneError": "hftl.errors",
    "BackboneOptions": "hftl.registry",
    "BackboneSpec": "hftl.registry",
    "BadRowError": "hftl.errors",
    "ConvergenceError": "hftl.errors",
    "DataError": "hftl.errors",
    "Encoded": "hftl.backbones.protocol",
    "Full": "hftl.methods",
    "Head": "hftl.methods",
    "HftlError": "hftl.errors",
    "HubError": "hftl.errors",
    "ImageBackbone": "hftl.backbones.vision",
    "Interrupted": "hftl.errors",
    "LoRA": "hftl.methods",
    "Partial": "hftl.methods",
    "PluginError": "hftl.errors",
    "PretrainedBackbone": "hftl.backbones.pretrained",
    "Recipe": "hftl.recipes",
    "RecipeError": "hftl.errors",
    "Source": "hftl.backbones.source",
    "SplitError": "hftl.errors",
    "StoreError": "hftl.errors",
    "TextBackbone": "hftl.backbones.text",
    "UserError": "hftl.errors",
    "compute_features": "hftl.pipeline",
    "hookimpl": "hftl.hookspecs",
    "recipe": "hftl.recipes",
    "run": "hftl.pipeline",
}

__all__ = [
    "Backbone",
    "BackboneError",
    "BackboneOptions",
    "BackboneSpec",
    "BadRowError",
    "ConvergenceError",
    "DataError",
    "Encoded",
    "Full",
    "Head",
    "HftlError",
    "HubError",
    "ImageBackbone",
    "Interrupted",
    "LoRA",
    "Partial",
    "PluginError",
    "PretrainedBackbone",
    "Recipe",
    "RecipeError",
    "Source",
    "SplitError",
    "StoreError",
    "TextBackbone",
    "UserError",
    "compute_features",
    "hookimpl",
    "recipe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hftl' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

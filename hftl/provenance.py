"""What a run was made of: every value, the backbone's commit, the data's identity, versions, the hardware."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from accelerate import PartialState

from hftl import __version__
from hftl.backbones.protocol import Backbone
from hftl.backbones.source import Source
from hftl.data import Data
from hftl.recipes import Recipe
from hftl.registry import BackboneSpec

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "safetensors", "numpy")


def as_json(name: str, recipe: Recipe, spec: BackboneSpec, backbone: Backbone, data: Data) -> dict[str, Any]:
    """Everything that a run was made of: every value, the backbone's commit, the data's identity, versions."""
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields if name not in ("method", "data")}
    source = getattr(backbone, "source", None)
    stated = {"license": spec.license} if spec.license else {}
    return {
        "name": name,
        "recipe": {**fields, "data": data.ref, "method": recipe.method.model_dump()},
        "backbone": {
            "name": backbone.name,
            "commit": backbone.commit,
            "plugin": spec.plugin,
            "plugin_version": spec.plugin_version,
            "pipeline_tag": backbone.pipeline_tag,
            "license": (source.license() if isinstance(source, Source) else {}) or stated,
            "pickled": isinstance(source, Source) and source.pickled,
            "identity": backbone.identity(),
        },
        "data": {
            "identity": data.identity,
            "task": data.task,
            "label_names": data.label_names,
            "rows": sizes(data),
            "notes": data.notes,
        },
        "versions": versions(),
        "platform": platform.platform(),
        "hardware": hardware(),
    }


def hardware() -> str:
    """What the run computes on, for people."""
    state = PartialState()
    if state.device.type == "cuda":
        name = torch.cuda.get_device_name(state.device)
    elif state.device.type == "cpu":
        name = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    else:
        name = state.device.type
    return name if state.num_processes == 1 else f"{state.num_processes} processes, each on {name}"


def versions() -> dict[str, str]:
    """The versions of hftl and of the libraries it stands on."""
    return {
        "hftl": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def sizes(data: Data) -> dict[str, int]:
    """Rows of each split."""
    return {split.name: len(split) for split in (data.train, data.validation, data.test) if split is not None}

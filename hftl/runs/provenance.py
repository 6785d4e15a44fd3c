"""Provenance: what a run's record is made of, which is the recipe, the backbone, the data, versions, the hardware."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState

from hftl._version import __version__
from hftl.backbones.bare import Bare
from hftl.backbones.protocol import Backbone
from hftl.criterion import Criterion
from hftl.data import Data
from hftl.metric_functions import qualified_name
from hftl.plugins.spec import BackboneSpec
from hftl.recipes import Recipe
from hftl.runs.record import BackboneRecord, DataRecord, RunRecord

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "safetensors", "numpy")


def record_of(
    name: str,
    recipe: Recipe,
    spec: BackboneSpec,
    backbone: Backbone,
    data: Data,
    criterion: Criterion,
) -> RunRecord:
    """Everything that a run is made of: every value, the backbone's commit, the data's identity, versions."""
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields if name not in ("method", "data", "metrics")}
    # Resolved, so that a folder tells which way is better without the function.
    if criterion.is_stated:
        fields["greater_is_better"] = criterion.greater_is_better
    metrics = [qualified_name(function) for function in recipe.metrics]
    stated = {"license": spec.license} if spec.license else {}
    return RunRecord(
        name=name,
        recipe={**fields, "data": data.ref, "method": recipe.method.model_dump(), "metrics": metrics},
        backbone=BackboneRecord(
            name=backbone.name,
            commit=backbone.commit,
            plugin=spec.plugin,
            plugin_version=spec.plugin_version,
            pipeline_tag=backbone.pipeline_tag,
            license=dict(backbone.license) or stated,
            pickled=backbone.pickled,
            max_length=backbone.max_length,
            pooling=asdict(backbone.pooling) if isinstance(backbone, Bare) else None,
            identity=backbone.identity(),
        ),
        data=DataRecord(
            identity=data.identity,
            task=data.task,
            label_names=data.label_names,
            rows=data.sizes(),
            notes=data.notes,
        ),
        versions=versions(),
        platform=platform.platform(),
        hardware=hardware(),
        started_in=str(Path.cwd()),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


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

"""A run, from a recipe to a model that anybody can load; read it from top to bottom."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from hftl import __version__
from hftl.backbones.protocol import Backbone
from hftl.data import Data, load_data
from hftl.export.card import write_card
from hftl.features.extract import open_space
from hftl.features.stat_index import StatIndex
from hftl.features.store import FeatureStore, cache_root
from hftl.frozen import Features, TrainedHead, features_of, train_head
from hftl.metrics import evaluate_predictions
from hftl.plugins import plugins
from hftl.recipes import Recipe
from hftl.registry import BackboneOptions, BackboneSpec, add_metrics, find, load
from hftl.run_folder import RunFolder

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "peft", "evaluate", "safetensors", "numpy")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: where everything is.
        metrics: what ``metrics.json`` holds.
    """

    folder: Path
    metrics: dict[str, Any]


def run(
    recipe: Recipe,
    *,
    name: str = "recipe",
    out: Path | None = None,
    offline: bool = False,
    quiet: bool = False,
    on_bad_row: str = "error",
) -> Run | None:
    """Do what a recipe says.

    Args:
        recipe: what to do.
        name: the recipe's name, for the folder ``runs/<name>/<time>``.
        out: another folder to write to.
        offline: use only what is on this machine.
        quiet: print nothing but errors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded and list them in the run's folder.

    Returns:
        The finished run; None on every process but the main one.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        HftlError: something failed.
    """
    started = time.monotonic()
    state = PartialState()
    main = state.is_main_process
    say = Console(quiet=quiet or not main, highlight=False)
    with quiet_libraries():
        spec = find(recipe.backbone)
        backbone = load(spec, BackboneOptions(recipe.max_length, offline))
        data = load_data(
            recipe.data,
            wants=backbone.wants,
            suffixes=backbone.suffixes,
            input_columns=recipe.input_columns,
            label_columns=recipe.label_columns,
            task=recipe.task,
            seed=recipe.seed,
            test_size=recipe.test_size,
        )
        describe(say, backbone, data)
        resolved = as_json(recipe, spec, backbone, data)
        folder = (RunFolder(out) if out else RunFolder.under(Path("runs"), name)) if main else None
        if folder:
            folder.write_json("recipe.json", resolved)
            plugins().tell("hftl_run_start", recipe=resolved, folder=str(folder.path))

        index = StatIndex(cache_root() / "digests" / "files.safetensors")
        plugin = {"name": spec.plugin, "version": spec.plugin_version}
        space = open_space(FeatureStore(cache_root()), backbone, plugin, recipe.method.pooling, index)
        config = backbone.config(data.task, data.label_names)
        features = features_of(
            backbone,
            config,
            space,
            data,
            index,
            pooling=recipe.method.pooling,
            on_bad_row=on_bad_row,
            quiet=quiet,
        )
        if folder is None:
            return None
        folder.log("features", **features.counts, space=space.id)
        for note in _feature_notes(features):
            say.print(note)

        fitting = time.monotonic()
        head = train_head(recipe.method, backbone, config, features, data, recipe.seed, state.device)
        for step in head.report.get("path", []):
            folder.log("strength", **step)
        train_seconds = time.monotonic() - fitting

        metrics = evaluate(folder, head, features, data)
        metrics["features"] = {**features.counts, "space": space.id}
        metrics["head"] = head.report
        head.export(folder.model)
        write_card(
            folder.model,
            backbone=backbone.name,
            commit=backbone.commit,
            pipeline_tag=backbone.pipeline_tag,
            library="transformers" if features.split.kind != "pooled" else "sentence-transformers",
            facts=facts(name, recipe, data, features, metrics),
        )
        metrics["seconds"] = {
            "extract": round(features.seconds, 3),
            "train": round(train_seconds, 3),
            "total": round(time.monotonic() - started, 3),
        }
        if features.bad:
            folder.write_json("skipped.json", [{"row": bad.row, "why": bad.why} for bad in features.bad])
        # Last, for where metrics.json stands a run is complete.
        folder.write_json("metrics.json", metrics)
        plugins().tell("hftl_run_end", metrics=metrics, folder=str(folder.path))
        folder.close()
    report(say, data, metrics, folder.path)
    return Run(folder.path, metrics)


def evaluate(folder: RunFolder, head: TrainedHead, features: Features, data: Data) -> dict[str, Any]:
    """Metrics on the test split; its predictions go to ``predictions.parquet``."""
    test = features.parts["test"]
    logits = head.logits(test.columns)
    computed = evaluate_predictions(data.task, logits.numpy(), test.split.labels, data.label_names)
    add_metrics(computed, logits.numpy(), test.split.labels, data.task)
    folder.log("eval", **{key: value for key, value in computed.items() if isinstance(value, float)})
    names = [test.split.inputs.name(i) for i in range(len(test.split))]
    folder.write_predictions(names, test.split.labels, scores(data.task, logits), data.label_names, data.task)
    return {"eval": computed}


def scores(task: str, logits: torch.Tensor) -> np.ndarray:
    """Logits (n, C) as what a pipeline reports: probabilities of classes, of each label, or the targets themselves."""
    if task == "single_label":
        logits = logits.softmax(1)
    elif task == "multi_label":
        logits = logits.sigmoid()
    return np.asarray(logits.float().numpy())


def as_json(recipe: Recipe, spec: BackboneSpec, backbone: Backbone, data: Data) -> dict[str, Any]:
    """Everything that a run was made of: every value, the backbone's commit, the data's identity, versions."""
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields if name not in ("method", "data")}
    return {
        "recipe": {**fields, "data": data.ref, "method": recipe.method.model_dump()},
        "backbone": {
            "name": backbone.name,
            "commit": backbone.commit,
            "plugin": spec.plugin,
            "plugin_version": spec.plugin_version,
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
    }


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


def facts(
    name: str, recipe: Recipe, data: Data, features: Features, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    """What the model card tells."""
    return {
        "name": name,
        "data": data.ref,
        "task": data.task,
        "label_names": data.label_names,
        "method": recipe.method.model_dump()
        | {"seed": recipe.seed, "chosen strength": metrics["head"].get("chosen")},
        "metrics": metrics["eval"],
        "sizes": {name: len(part.split) for name, part in features.parts.items()},
        "versions": versions(),
    }


def describe(say: Console, backbone: Backbone, data: Data) -> None:
    """Print what was found and inferred before any long work."""
    commit = f" at {backbone.commit[:12]}" if backbone.commit else ""
    say.print(f"backbone  {backbone.name}{commit} ({backbone.modality})", markup=False, soft_wrap=True)
    counts = ", ".join(f"{name} {rows:,}" for name, rows in sizes(data).items())
    classes = f", {len(data.label_names):,} labels" if data.task != "regression" else ""
    say.print(
        f"data      {data.ref}: {counts} rows; {data.task.replace('_', ' ')}{classes}",
        markup=False,
        soft_wrap=True,
    )
    for note in data.notes:
        say.print(f"          {note}", markup=False, soft_wrap=True)


def _feature_notes(features: Features) -> Iterator[str]:
    counts = features.counts
    yield f"features  {counts['computed']:,} computed, {counts['reused']:,} reused"
    if counts["truncated"]:
        yield f"          {counts['truncated']:,} texts were longer than the model reads and were cut (--max-length)"
    if features.bad:
        yield f"          {len(features.bad):,} rows could not be decoded and were left out; skipped.json lists them"


def report(say: Console, data: Data, metrics: Mapping[str, Any], folder: Path) -> None:
    """Print the table of results and where everything is."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics["eval"].items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
    say.print(table)
    seconds = metrics["seconds"]
    say.print(
        f"seconds   extract {seconds['extract']:.1f}, train {seconds['train']:.1f}, total {seconds['total']:.1f}"
    )
    say.print(f"run       {folder}", markup=False, soft_wrap=True)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the chatter of transformers and datasets (load reports, progress bars) while a run speaks for itself."""
    import datasets
    from transformers.utils import logging

    level, bars, data_bars = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if not data_bars:
            datasets.enable_progress_bars()

"""A run, from a recipe to a model that anybody can load; read it from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console

from hftl.backbones.protocol import Backbone
from hftl.console import describe, describe_bad, describe_features, quiet_libraries, report
from hftl.data import Data, load_data
from hftl.errors import BadRowError, RecipeError
from hftl.export.card import write_card
from hftl.export.matrix import Matrix
from hftl.finetune.parallel import on_main, share
from hftl.finetune.rows import without_bad_rows
from hftl.frozen import Features, features_of, matrix_of
from hftl.head import TrainedHead, train_head
from hftl.methods import Head
from hftl.metrics import evaluate_predictions
from hftl.plugins import plugins
from hftl.provenance import as_json, sizes
from hftl.recipes import Recipe
from hftl.registry import BackboneOptions, BackboneSpec, add_metrics, find, load
from hftl.run_folder import RunFolder

if TYPE_CHECKING:
    from hftl.finetune.train import Trained

NO_FEATURES = {"rows": 0, "computed": 0, "reused": 0}


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
    allow_pickle: bool = False,
    quiet: bool = False,
    on_bad_row: str = "error",
    resume: bool = False,
    track: Sequence[str] = (),
) -> Run | None:
    """Do what a recipe says.

    Args:
        recipe: what to do.
        name: the recipe's name, for the folder ``runs/<name>/<time>``.
        out: another folder to write to.
        offline: use only what is on this machine.
        allow_pickle: read a backbone's weights that are there only as a pickle, as nothing but tensors.
        quiet: print nothing but errors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded and list them in the run's
            folder.
        resume: go on with fine-tuning from the newest checkpoint in ``out``, or else in the recipe's newest
            unfinished run.
        track: trackers of accelerate that fine-tuning logs to as well: ``tensorboard``, ``trackio``, ``wandb``,
            ``mlflow``.

    Returns:
        The finished run; None on every process but the main one.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        HftlError: something failed.
        Interrupted: fine-tuning was asked to stop; its state is saved.
    """
    started = time.monotonic()
    main = start_processes().is_main_process
    say = Console(quiet=quiet or not main, highlight=False)
    with quiet_libraries():
        spec, backbone, data = inputs_of(recipe, say, offline, allow_pickle)
        folder: RunFolder | None = on_main(lambda: open_folder(out, name, resume))
        resolved = as_json(name, recipe, spec, backbone, data)
        if folder:
            folder.write_json("recipe.json", resolved)
            plugins().tell("hftl_run_start", recipe=resolved, folder=str(folder.path))
        features, bad = None, []
        if isinstance(recipe.method, Head) or recipe.method.init == "probe":
            features = stored_features(recipe, spec, backbone, data, say, on_bad_row=on_bad_row, quiet=quiet)
            data, bad = features.of(data), features.bad
            if folder:
                folder.log("features", **features.counts, space=features.space.id)
        elif on_bad_row == "skip":
            data, bad = without_bad_rows(backbone, data)
            describe_bad(say, bad)
        fitting = time.monotonic()
        trained = train(recipe, backbone, data, features, folder, say, resume, track)
        if folder is None or trained is None:
            return None
        trained_at = time.monotonic()
        metrics = evaluate(folder, trained, features, data)
        trained.export(folder.model)
        metrics["seconds"] = {
            "extract": round(features.seconds if features else 0.0, 3),
            "train": round(trained_at - fitting, 3),
            "total": round(time.monotonic() - started, 3),
        }
        finish(folder, recipe, backbone, resolved, metrics, bad)
    report(say, metrics, folder.path)
    return Run(folder.path, metrics)


def compute_features(
    recipe: Recipe,
    *,
    pooling: str | None = None,
    also: Sequence[str] = (),
    offline: bool = False,
    allow_pickle: bool = False,
    quiet: bool = False,
    on_bad_row: str = "error",
) -> Matrix:
    """Compute what is missing of a recipe's features and return all of them, without training.

    Args:
        recipe: the backbone and the data.
        pooling: ``"native"``, ``"mean"`` or ``"cls"``; None for the recipe's own.
        also: other poolings to store from the same pass.
        offline: use only what is on this machine.
        allow_pickle: read a backbone's weights that are there only as a pickle, as nothing but tensors.
        quiet: print nothing but errors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        StoreError: features cannot be stored.
    """
    say = Console(quiet=quiet or not start_processes().is_main_process, highlight=False)
    with quiet_libraries():
        spec, backbone, data = inputs_of(recipe, say, offline, allow_pickle)
        features = stored_features(
            recipe, spec, backbone, data, say, pooling=pooling, also=also, on_bad_row=on_bad_row, quiet=quiet
        )
    return matrix_of(features, data)


# The steps of a run, in the order in which they are taken.


def start_processes() -> PartialState:
    """This process's place among those of the launcher."""
    # On CPUs accelerate joins the processes of a launcher only if it is told that CPUs are meant.
    return PartialState(cpu=not torch.accelerator.is_available())


def inputs_of(recipe: Recipe, say: Console, offline: bool, allow_pickle: bool) -> tuple[BackboneSpec, Backbone, Data]:
    """Find the backbone and the data that a recipe names, and say what was found and inferred."""
    spec = find(recipe.backbone)
    backbone = load(spec, BackboneOptions(recipe.max_length, offline, allow_pickle))
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
    pooling = probe_of(recipe).pooling
    if pooling != "native" and backbone.wants != "text":
        raise RecipeError(f"pooling={pooling!r}: only a head on texts can be exported with it; leave pooling out")
    describe(say, backbone, data)
    return spec, backbone, data


def probe_of(recipe: Recipe) -> Head:
    """The head that a method trains, or that fine-tuning starts from."""
    return recipe.method if isinstance(recipe.method, Head) else recipe.method.probe


def stored_features(
    recipe: Recipe,
    spec: BackboneSpec,
    backbone: Backbone,
    data: Data,
    say: Console,
    *,
    pooling: str | None = None,
    also: Sequence[str] = (),
    on_bad_row: str,
    quiet: bool,
) -> Features:
    """The features of all rows, computed where they are missing."""
    probe = probe_of(recipe)
    features = features_of(
        spec,
        backbone,
        backbone.config(data.task, data.label_names),
        data,
        pooling=pooling or probe.pooling,
        also=also,
        precision=probe.mixed_precision,
        on_bad_row=on_bad_row,
        quiet=quiet,
    )
    describe_features(say, features)
    describe_bad(say, features.bad)
    return features


def train(
    recipe: Recipe,
    backbone: Backbone,
    data: Data,
    features: Features | None,
    folder: RunFolder | None,
    say: Console,
    resume: bool,
    track: Sequence[str],
) -> TrainedHead | Trained | None:
    """Train what the method trains; a head on the main process alone, everything else on all of them."""
    config = backbone.config(data.task, data.label_names)

    def solved() -> TrainedHead:
        assert features is not None
        return train_head(probe_of(recipe), backbone, config, features, data, recipe.seed, PartialState().device)

    if isinstance(recipe.method, Head):
        return solved() if folder else None
    # Brought only here: PEFT takes a second to import.
    from hftl.finetune.train import finetune

    return finetune(
        recipe.method,
        backbone,
        config,
        data,
        start=on_main(lambda: start_of(solved(), data, say)) if features else None,
        seed=recipe.seed,
        folder=Path(share(str(folder.path) if folder else None)),
        resume=resume,
        track=track,
        log=folder.log if folder else _log_nothing,
        say=partial(say.print, markup=False, soft_wrap=True),
    )


def start_of(head: TrainedHead, data: Data, say: Console) -> dict[str, torch.Tensor]:
    """The solved head's parameters, for fine-tuning to start from, and a word on how good they are."""
    computed = evaluate_predictions(data.task, head.logits.numpy(), data.test.labels, data.label_names)
    name = next(iter(computed))
    say.print(f"start     the head solved on the features: {name} {computed[name]:.4f}", markup=False, soft_wrap=True)
    return head.parameters


def evaluate(
    folder: RunFolder, trained: TrainedHead | Trained, features: Features | None, data: Data
) -> dict[str, Any]:
    """Metrics on the test split and what training reports; predictions go to ``predictions.parquet``."""
    for step in trained.report.get("path", []):
        folder.log("strength", **step)
    test, logits = data.test, trained.logits
    computed = evaluate_predictions(data.task, logits.numpy(), test.labels, data.label_names)
    add_metrics(computed, logits.numpy(), test.labels, data.task)
    folder.log("eval", **{key: value for key, value in computed.items() if isinstance(value, float)})
    names = [test.inputs.name(i) for i in range(len(test))]
    folder.write_predictions(names, test.labels, scores(data.task, logits), data.label_names, data.task)
    return {
        "eval": computed,
        "features": features.counts | {"space": features.space.id} if features else dict(NO_FEATURES),
        "head" if isinstance(trained, TrainedHead) else "finetune": trained.report,
        "rows": sizes(data),
    }


def scores(task: str, logits: torch.Tensor) -> np.ndarray:
    """Logits (n, C) as what a pipeline reports: probabilities of classes, of each label, or the targets themselves."""
    if task == "single_label":
        logits = logits.softmax(1)
    elif task == "multi_label":
        logits = logits.sigmoid()
    return np.asarray(logits.float().numpy())


def finish(
    folder: RunFolder,
    recipe: Recipe,
    backbone: Backbone,
    resolved: dict[str, Any],
    metrics: dict[str, Any],
    bad: Sequence[BadRowError],
) -> None:
    """Write the model card and, last, the metrics."""
    library = backbone.library if probe_of(recipe).pooling == "native" else "sentence-transformers"
    write_card(folder.model, resolved, metrics, library)
    if (folder.path / "adapter").is_dir():
        write_card(folder.path / "adapter", resolved, metrics, "peft")
    if bad:
        folder.write_json("skipped.json", [{"row": row.row, "why": row.why} for row in bad])
    # Last, for where metrics.json stands a run is complete.
    folder.write_json("metrics.json", metrics)
    plugins().tell("hftl_run_end", metrics=metrics, folder=str(folder.path))


def open_folder(out: Path | None, name: str, resume: bool) -> RunFolder:
    """The run's folder: the one asked for, the one to go on with, or a new one."""
    if out:
        return RunFolder(out, resume=resume)
    return RunFolder.unfinished(Path("runs"), name) if resume else RunFolder.under(Path("runs"), name)


def _log_nothing(event: str, **values: Any) -> None:
    """What processes other than the main one log."""

"""A run, from a recipe to a model that anybody can load; read it from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from hftl.backbones.protocol import Target
from hftl.backbones.text_tower import prompts_of
from hftl.criterion import Criterion
from hftl.crossed import (
    FOLD_TOLERANCE,
    FOLDS,
    Crossed,
    Plan,
    Together,
    Train,
    cross_validated,
    of_fold,
    read_fold,
    write_fold,
)
from hftl.data import Data
from hftl.errors import BadRowError, CutError, RecipeError
from hftl.export.card import write_card
from hftl.export.proof import Evidence, prove_exports
from hftl.export.trained import Exported, Trained, not_kept
from hftl.finetune.resume import settings
from hftl.finetune.rows import without_bad_rows
from hftl.finished import Run
from hftl.frozen.bounded import Memory
from hftl.frozen.features import StoredFeatures, taken
from hftl.frozen.head import folds_share, train_folds, train_head
from hftl.frozen.recipe import chooses, inputs_of, memory_of, probe_of, stored_features, view_of, views_of
from hftl.hub.client import staying_offline
from hftl.measured import measure, prompts_of_start, told_of
from hftl.methods import Head
from hftl.parallel import broadcast, met_everywhere, on_main, start_processes
from hftl.plugins.spec import BackboneOptions, BackboneSpec
from hftl.progress import Progress
from hftl.recipes import Recipe
from hftl.report.collect import collect
from hftl.report.collected import COLLECTED, Collected
from hftl.report.page import write_report
from hftl.runs.again import RecipeLike, as_recipe, cv_of_run
from hftl.runs.console import print_bad_rows, print_results, quiet_libraries
from hftl.runs.folder import RunFolder, writing
from hftl.runs.judgement import judgements
from hftl.runs.provenance import record_of
from hftl.runs.record import Metrics, RunRecord
from hftl.scout.layers import layers
from hftl.scout.zero_shot import zero_shot_start
from hftl.terminal import Terminal
from hftl.travel.place import without_password
from hftl.wording import named_error, printable

SKIPPED = "skipped.json"


def run(
    recipe: RecipeLike,
    *,
    name: str | None = None,
    out: str | Path | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    quiet: bool = False,
    on_bad_row: str = "error",
    resume: bool = False,
    track: Sequence[str] = (),
    report: bool = True,
    cv: str | None = None,
    trust_features: Sequence[str] = (),
) -> Run | None:
    """Do what a recipe says.

    Args:
        recipe: what to do: a `Recipe`, or one that `hftl run` finds (a Python file, a name, a run to do again).
        name: the recipe's name, for the folder ``runs/<name>/<time>``; None for its own.
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
        report: write ``report.html`` into the run's folder at the end.
        cv: score the training rows by cross-validation, ``"5x3"`` for 5 folds that are dealt 3 times; what is exported
            is trained on all of them. Where the data bring no test split none is drawn. None for what the run had that
            is done again, where one is; ``"none"`` for no cross-validation.
        trust_features: origins of foreign spaces, as `hftl cache pull` names them, whose rows are used instead of
            computed ones, once a random sample of them was computed here and agrees.

    Returns:
        The finished run; None on every process but the main one.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        HftlError: something failed.
        Interrupted: fine-tuning was asked to stop; its state is saved.
    """
    started = time.monotonic()
    cv = cv or cv_of_run(recipe)
    recipe, own_name = as_recipe(recipe)
    name = name or own_name
    plan = planned(cv, recipe) if cv and cv != "none" else None
    if trust_features and not needs_features(recipe):
        raise RecipeError("--trust-features: fine-tuning with this init starts from no features: leave it out")
    main = start_processes().is_main_process
    say = Terminal(quiet=quiet or not main)
    with quiet_libraries(), staying_offline(offline), ExitStack() as held:
        if recipe.depth == "auto":
            recipe = with_depth(recipe, say, offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row)
        with met_everywhere():
            options = BackboneOptions(recipe.max_length, offline, allow_pickle)
            spec, target, data = inputs_of(recipe, say, options, set_aside=plan is None)
        if plan is not None and data.task.of_words:
            raise RecipeError("--cv deals whole rows to folds, and here each word has a label: leave it out")
        if data.task.of_words and not isinstance(recipe.method, Head) and (recipe.method.mixup or recipe.method.cutmix):
            raise RecipeError("mixup and cutmix mix whole rows, and here each word has a label: leave them out")
        criterion = chooses(recipe, data.task)
        on_main(lambda: check_method(recipe, target, Path(out or "runs"), resume=resume, track=track))
        check_aim(recipe, data, plan)
        said = list(target.backbone.notes)
        # Only the main process has a folder; the others compute their share and write nothing but features.
        folder: RunFolder | None = on_main(lambda: open_folder(out, name, resume))
        if folder:
            held.callback(folder.release)
        told: dict[str, Any] = {"cv": cv if plan else None}
        told["trust_features"] = [without_password(origin) for origin in trust_features]
        record = record_of(name, recipe, spec, target.backbone, data, criterion).model_copy(update=told)
        if folder:
            folder.write_record(record)
        features, bad = None, []
        memory = memory_of(recipe, data, say, crossed=plan.folds if plan else 0)
        if needs_features(recipe):
            how: dict[str, Any] = {"on_bad_row": on_bad_row, "quiet": quiet, "trust": trust_features, "memory": memory}
            features = starting_features(recipe, spec, target, data, say, **how)
        else:
            memory.holds(sum(data.sizes().values()))
        if features:
            data, bad = features.readable(data), features.bad
            if folder:
                folder.log("features", **told_of(features))
        elif on_bad_row == "skip":
            data, bad = without_bad_rows(target.backbone, data)
            print_bad_rows(say, bad, SKIPPED)
        fitting = time.monotonic()
        crossed = None
        if plan:
            train = partial(train_part, recipe=recipe, target=target, folder=folder, origin=spec.origin, resume=resume)
            mine = features if folder else None
            together = partial(train_together, recipe=recipe, target=target, features=mine, data=data)
            crossed = crossed_run(plan, recipe, data, features, train=train, together=together, say=say)
            data, features = scored_by_folds(data, features, crossed)
        if isinstance(recipe.method, Head):
            # A head takes seconds, so one process solves it and the others are done.
            trained = solved_head(recipe, target, features, data, say) if folder else None
        else:
            where = folder.path if folder else None
            log = folder.log if folder else _log_nothing
            how = {"origin": spec.origin, "resume": resume, "track": track, "log": log}
            is_seen = crossed is not None and crossed.is_all
            if is_seen:
                how["log"] = partial(_log_of_training, log)
            trained = finetuned(recipe, target, features, data, where, say, **how, is_seen=is_seen)
        if folder is None or trained is None:
            return None
        trained_at = time.monotonic()
        for note in target.backbone.notes:
            if note not in said:
                # What only the model's weights tell, where they were read.
                say.print(f"          {note}")
        metrics = measure(recipe, folder, target, trained, features, data, say=say, crossed=crossed)
        if thresholds := trained.report.get("thresholds"):
            # A field of our own in config.json: whoever loads the model decides as the run did.
            target.config.thresholds = thresholds
        if (below := trained.report.get("abstain_below")) is not None:
            target.config.abstain_below = below
        with writing(folder.path):
            written = trained.export(folder.model)
        exported = prove_exports(written, target, evidence_of(recipe, features, data, trained), say.print)
        seconds = {
            "extract": round(features.seconds if features else 0.0, 3),
            "train": round(trained_at - fitting, 3),
            "total": round(time.monotonic() - started, 3),
        }
        metrics = metrics.model_copy(update={"seconds": seconds})
        metrics = finish(folder, exported, record, metrics, bad)
        page = None
        if report:
            shown: Callable[[], Collected] = partial(
                collect, data, features, trained, target.backbone.modality, recipe.seed
            )
            if crossed and crossed.is_all:
                shown = _collected_of_folds
            page = written_report(folder, shown, say)
    print_results(say, metrics, folder.path, page)
    for line in judgements(metrics, criterion):
        say.print(line)
    return Run(folder.path)


# The steps of a run, in the order in which they are taken.


def with_depth(recipe: Recipe, say: Terminal, *, offline: bool, allow_pickle: bool, on_bad_row: str) -> Recipe:
    """The recipe at the shallowest depth whose probe is as good as the best one's, and a word on why; see `layers`."""
    found = layers(recipe, offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=say.quiet)
    # One process says what all do: rounding may differ between them.
    depth = broadcast(found.chosen)
    say.print(f"depth     {found.advice}")
    return recipe.model_copy(update={"depth": depth})


def check_method(recipe: Recipe, target: Target, where: Path, *, resume: bool, track: Sequence[str]) -> None:
    """See that the method can do what is asked of it, before features are computed.

    Raises:
        UserError: it cannot; see `hftl.finetune.feasible.check`.
    """
    if not isinstance(recipe.method, Head):
        # Brought only here: PEFT takes a second to import.
        from hftl.finetune.feasible import check

        check(recipe.method, target, where.expanduser(), track)
    elif resume:
        raise RecipeError(
            "--resume goes on with fine-tuning, and method=head has no checkpoints: run the same command without "
            "--resume, and every feature that is stored is reused"
        )
    elif track:
        raise RecipeError("--track logs the steps of fine-tuning, and method=head takes none; leave it out")


def check_aim(recipe: Recipe, data: Data, plan: Plan | None = None) -> None:
    """See that there are labels to decide, and rows to choose thresholds on, before anything is computed.

    Raises:
        RecipeError: there are none.
    """
    if recipe.aim.metric == "f1":
        return
    field, abstains = recipe.aim.field, recipe.aim.metric == "coverage"
    if not (data.task.is_exclusive if abstains else data.task.link == "sigmoid"):
        kind = "one label a row" if abstains else "several labels"
        raise RecipeError(f"{field} is for data with {kind}, and this is {data.task.words}: leave it out")
    if not isinstance(recipe.method, Head) and data.validation is None and recipe.method.patience is None:
        advice = "--validation-size 0.1" if plan is None else "--patience 2, which sets some aside in each training"
        raise RecipeError(f"{field}: thresholds are chosen on held-out rows, and there are none: add {advice}")


def open_folder(out: str | Path | None, name: str, resume: bool) -> RunFolder:
    """The run's folder: the one asked for, the one to go on with, or a new one."""
    if out:
        return RunFolder.create(Path(out).expanduser(), resume=resume)
    return RunFolder.unfinished(Path("runs"), name) if resume else RunFolder.under(Path("runs"), name)


def planned(cv: str, recipe: Recipe) -> Plan:
    """How rows are dealt for cross-validation.

    Raises:
        RecipeError: the text says nothing of the kind, or the recipe wants something that does not go with it.
    """
    plan = Plan.of(cv)
    for field in ("coverage", "out_of_scope"):
        if getattr(recipe, field) is not None:
            raise RecipeError(
                f"--cv scores folds, each by a model of its own, and {field} is measured of the one that is exported: "
                "leave out one of them"
            )
    if isinstance(recipe.method, Head) and recipe.method.test_views > 1:
        raise RecipeError("--cv scores folds by pictures as they are: leave out --test-views")
    if recipe.depth == "auto":
        raise RecipeError(
            "--cv scores rows by models that have not seen them, and depth='auto' looks at all of them: give --depth N "
            "(`hftl layers` says which), or leave out --cv"
        )
    if recipe.time is not None:
        raise RecipeError(
            "--cv deals rows at random, and time wants the past trained on and the future tested: leave out one of them"
        )
    if recipe.validation_size is not None:
        how = "folds" if isinstance(recipe.method, Head) else "a tenth (--patience 2)"
        raise RecipeError(
            f"--cv scores every training row, and chooses on {how} of those that each model is trained on: leave out "
            "--validation-size"
        )
    return plan


def crossed_run(
    plan: Plan,
    recipe: Recipe,
    data: Data,
    features: StoredFeatures | None,
    *,
    train: Train,
    together: Together,
    say: Terminal,
) -> Crossed | None:
    """Every training row scored by models that have not seen it, and a word on what that takes."""
    cost = "" if isinstance(recipe.method, Head) else f" of {recipe.method.epochs} epochs (--method head takes seconds)"
    say.print(f"cv        {plan}: {plan.trainings} trainings{cost}, then one on all {len(data.train):,} rows")
    method = recipe.method
    if (
        isinstance(method, Head)
        and method.folds != Head().folds
        and features is not None
        and data.validation is None
        and folds_share(method, features, data, plan.folds)
    ):
        say.print(f"          strengths are chosen on the other folds, that of what is exported on {method.folds}")
    criterion = chooses(recipe, data.task)
    how: dict[str, Any] = {"criterion": criterion, "seed": recipe.seed, "quiet": say.quiet}
    return cross_validated(plan, data, features, train, together, **how)


def train_together(
    dealt: np.ndarray, recipe: Recipe, target: Target, features: StoredFeatures | None, data: Data
) -> list[Trained] | None:
    """The models without each fold of a deal, where they are heads that are solved together."""
    if features is None or not isinstance(recipe.method, Head):
        return None
    return train_folds(recipe.method, target, features, data, dealt, **_solving(recipe, data, FOLD_TOLERANCE))


def train_part(
    part: Data,
    features: StoredFeatures | None,
    name: str,
    *,
    recipe: Recipe,
    target: Target,
    folder: RunFolder | None,
    origin: Mapping[str, str],
    resume: bool,
) -> Trained | None:
    """The model without one fold; one of fine-tuning that was done before the run was stopped is read again."""
    silent = Terminal(quiet=True)
    if isinstance(recipe.method, Head):
        if folder is None:
            return None
        return solved_head(recipe, target, features, part, silent, FOLD_TOLERANCE)
    where = folder.path / FOLDS / name if folder else None
    method, known = recipe.method, features.digests if features else None
    criterion = chooses(recipe, part.task)
    made_with = on_main(
        lambda: settings(method, target.backbone, part, recipe.seed, known, criterion) | {"aim": str(recipe.aim)}
    )
    done = broadcast(on_main(lambda: read_fold(where, made_with) if where and resume else None))
    if done is not None:
        return of_fold(done)
    told: dict[str, Any] = {"origin": origin, "resume": resume, "track": (), "log": _log_nothing}
    trained = finetuned(recipe, target, features, part, where, silent, **told)
    on_main(lambda: write_fold(where, trained, made_with) if where else None)
    # The next fold has the memory to itself.
    trained.export = not_kept
    return trained


def scored_by_folds(
    data: Data, features: StoredFeatures | None, crossed: Crossed | None
) -> tuple[Data, StoredFeatures | None]:
    """The data whose test split, where they have none, are the rows that folds scored."""
    if crossed is None or not crossed.is_all:
        return data, features
    if features is not None:
        rows = crossed.places
        splits = {**features.splits, "test": taken(features.splits["train"], rows, "test")}
        features = replace(features, splits=splits)
    return replace(data, test=crossed.split), features


def _collected_of_folds() -> Collected:
    """What a page has of rows of which none is a test row."""
    why = "every row was scored by folds and trained on afterwards, so none is beside training"
    return Collected(missing=dict.fromkeys(("rows", "map", "suspects", "copies", "near"), why))


def needs_features(recipe: Recipe) -> bool:
    """Whether a head is solved on stored features, as the result or as the start of fine-tuning."""
    return isinstance(recipe.method, Head) or recipe.method.init == "probe"


def starting_features(
    recipe: Recipe,
    spec: BackboneSpec,
    target: Target,
    data: Data,
    say: Terminal,
    *,
    on_bad_row: str,
    quiet: bool,
    trust: Sequence[str],
    memory: Memory,
) -> StoredFeatures | None:
    """The features that the head is solved on; None where fine-tuning has to do without, which is said.

    Raises:
        CutError: the backbone cannot be cut exactly, and the method is a head.
    """
    try:
        return stored_features(
            spec,
            target,
            data,
            [view_of(recipe, target.backbone)],
            say,
            on_bad_row=on_bad_row,
            quiet=quiet,
            listed=SKIPPED,
            augmented=views_of(recipe),
            trust=trust,
            memory=memory,
        )
    except CutError as error:
        if isinstance(recipe.method, Head):
            raise
        # The advice that ends the message is to fine-tune, which is what is being done.
        why = str(error).partition("; fine-tune")[0]
        say.print(f"start     the head as the checkpoint has it, because it cannot be solved on features: {why}")
        return None


def solved_head(
    recipe: Recipe,
    target: Target,
    features: StoredFeatures | None,
    data: Data,
    say: Terminal,
    tolerance: float = 1e-10,
) -> Trained:
    """The head, trained on the features; see `hftl.frozen.head.train_head`."""
    assert features is not None
    with Progress("head", quiet=say.quiet):
        return train_head(probe_of(recipe), target, features, data, **_solving(recipe, data, tolerance))


def _solving(recipe: Recipe, data: Data, tolerance: float) -> dict[str, Any]:
    """How a recipe's heads are solved, alone or those of all folds together."""
    return {
        "seed": recipe.seed,
        "device": PartialState().device,
        "criterion": chooses(recipe, data.task),
        "tolerance": tolerance,
        "aim": recipe.aim,
    }


def start_of(recipe: Recipe, target: Target, data: Data, head: Trained | None) -> dict[str, torch.Tensor] | None:
    """The head's parameters that fine-tuning starts from, by name; None for those of the checkpoint."""
    assert not isinstance(recipe.method, Head)
    if recipe.method.init == "zero-shot":
        return zero_shot_start(recipe.method, target, data)
    return head.parameters if head else None


def finetuned(
    recipe: Recipe,
    target: Target,
    features: StoredFeatures | None,
    data: Data,
    where: Path | None,
    say: Terminal,
    *,
    origin: Mapping[str, str],
    resume: bool,
    track: Sequence[str],
    log: Callable[..., None],
    is_seen: bool = False,
) -> Trained:
    """The model, fine-tuned on all processes from the solved head where there is one.

    Where the rows of the test split are trained on too, ``is_seen``, what is measured on them is told as training's.
    """
    # Brought only here: PEFT takes a second to import.
    from hftl.finetune.train import finetune, rows_set_aside

    assert not isinstance(recipe.method, Head)
    criterion = chooses(recipe, data.task)
    taught, known, stays = data, features, None
    if features and (parts := rows_set_aside(data, recipe.method, recipe.seed)):
        # The start competes with every epoch, on rows that therefore must not teach it.
        stays, _ = parts
        taught = replace(data, train=data.train.select(stays))
        known = replace(features, splits={**features.splits, "train": taken(features.splits["train"], stays)})
    head: Trained | None = on_main(lambda: solved_head(recipe, target, known, taught, say)) if known else None
    start = on_main(lambda: start_of(recipe, target, data, head))
    if (templates := prompts_of_start(recipe)) is not None:
        said = prompts_of(data.label_names[0], templates)[0]
        say.print(f"start     the text tower's embeddings of {said!r} and the other labels")
    elif head:
        worth = "" if is_seen or say.quiet else _worth(head, criterion, data)
        say.print(f"start     the head solved on the features{worth}")
    trained = finetune(
        recipe.method,
        target,
        data,
        criterion=criterion,
        start=start,
        seed=recipe.seed,
        folder=Path(broadcast(str(where) if where else None)),
        resume=resume,
        known=features.digests if features else None,
        origin=origin,
        track=track,
        aim=recipe.aim,
        log=log,
        say=say.print,
        quiet=say.quiet,
    )
    if head:
        trained.held_out = head.held_out
        if stays is not None and head.held_out is not None:
            rows = torch.from_numpy(stays)[head.held_out.rows.cpu()]
            trained.held_out = replace(head.held_out, rows=rows)
        # What costs nothing on these features stands beside what fine-tuning made of them.
        trained.free = head.free
    if is_seen:
        trained.report["epochs"] = [_of_training(epoch) for epoch in trained.report["epochs"]]
        trained.report["start"] = _of_training(trained.report["start"])
    return trained


def _worth(head: Trained, criterion: Criterion, data: Data) -> str:
    """What a solved head is worth on the test split, for a person."""
    try:
        value = criterion.value(head.logits.numpy(), data.test.labels, label_names=data.label_names)
    except RecipeError:
        # A function may need, say, a class that these rows lack; nothing is decided here.
        return ""
    return f": {printable(criterion.name)} {value:.4f}"


def _of_training(measured: Mapping[str, Any]) -> dict[str, Any]:
    """What an epoch was measured to be, where the rows of the test split are those of training."""
    return {**measured, "split": "train"} if measured.get("split") == "test" else dict(measured)


def _log_of_training(log: Callable[..., None], event: str, **values: Any) -> None:
    log(event, **_of_training(values))


def evidence_of(recipe: Recipe, features: StoredFeatures | None, data: Data, trained: Trained) -> Evidence:
    """What an export is compared with before it is called a result."""
    return Evidence(
        data.test,
        data.task,
        trained.logits,
        recipe.method.mixed_precision,
        features.content.equal_lengths if features else None,
        PartialState().device,
        trained.storage,
        trained.slack,
        [str(each.origin) for each in features.trusted if each.rows] if features else [],
    )


def finish(
    folder: RunFolder, exported: Sequence[Exported], record: RunRecord, metrics: Metrics, bad: Sequence[BadRowError]
) -> Metrics:
    """Write the cards of what was exported and, last, the metrics, which say what the exported files were."""
    for each in exported:
        write_card(each.folder, record, metrics, each.library)
    if bad:
        folder.write_json(SKIPPED, [{"row": row.row, "why": row.why} for row in bad])
    metrics = metrics.model_copy(update={"files": folder.seal([each.folder for each in exported])})
    # Last, because where metrics.json stands a run is complete.
    folder.write_metrics(metrics)
    # What its folds said is in out_of_fold.parquet.
    rmtree(folder.path / FOLDS, ignore_errors=True)
    return metrics


def written_report(folder: RunFolder, gather: Callable[[], Collected], say: Terminal) -> Path | None:
    """The page of a run that is finished; None where it cannot be made, which is said and costs the run nothing."""
    try:
        folder.write_json(COLLECTED, gather().model_dump(mode="json"))
        return write_report(folder.path)
    except Exception as error:
        say.print(
            f"report    not written: {named_error(error)}; the run is finished, and hftl report {folder.path} writes "
            "what its folder tells"
        )
        return None


def _log_nothing(event: str, **values: Any) -> None:
    """What processes other than the main one log."""

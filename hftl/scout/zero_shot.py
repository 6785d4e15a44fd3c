"""``zero_shot``: what a backbone with a text tower says of the test rows without having seen a label."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from accelerate import PartialState
from torch import Tensor

from hftl.backbones.bare import HEAD, BareImageBackbone, PooledClassifier
from hftl.backbones.protocol import Backbone, Target
from hftl.backbones.text_tower import check_templates, prompts_of, text_classifier
from hftl.backbones.vision import ImageBackbone
from hftl.criterion import Criterion
from hftl.data import Data, Split
from hftl.errors import BackboneError, DataError, UserError
from hftl.export.model import Dense, export_pooled
from hftl.export.proof import Evidence, prove_exports
from hftl.frozen.budget import keep_remembered, remembered
from hftl.frozen.extract import digest_rows
from hftl.frozen.recipe import probe_of, stored_features, view_of
from hftl.frozen.rounding import logit_slack
from hftl.frozen.view import digest_weights
from hftl.intervals import Interval
from hftl.methods import PROMPT, FineTune
from hftl.runs.again import RecipeLike, as_recipe
from hftl.runs.folder import writing
from hftl.scored import scored
from hftl.scout.answer import Answer
from hftl.scout.stored import reading
from hftl.store.shard import Digests
from hftl.store.stat_index import StatIndex
from hftl.store.store import FeatureStore, cache_root

MEMORY = "zero-shot.json"


@dataclass(frozen=True)
class LabelFound:
    """How a label fared.

    Attributes:
        label: its name.
        said: its first prompt.
        rows: test rows that have it.
        found: share of them that were given it.
    """

    label: str
    said: str
    rows: int
    found: float


@dataclass(frozen=True, repr=False)
class ZeroShot(Answer):
    """What pictures get when the only thing known of a label is its name.

    Attributes:
        metric: ``accuracy``.
        score: on the test split.
        majority: what always saying the most frequent class of the test split would get.
        rows: of the test split.
        prompts: with ``{label}`` for a label's name.
        labels: one each, in the order of the data.
        folder: the model folder that was written; None where none was asked for.
        advice: one sentence.
    """

    table: ClassVar[str] = "labels"

    metric: str
    score: Interval
    majority: float
    rows: int
    prompts: list[str]
    labels: list[LabelFound]
    folder: str | None
    advice: str


def zero_shot(
    recipe: RecipeLike,
    *,
    prompts: Sequence[str] = (PROMPT,),
    out: str | Path | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    on_bad_row: str = "error",
    quiet: bool = False,
) -> ZeroShot:
    """Classify a recipe's test rows by the text tower of its backbone, from the names of the labels alone.

    The pictures' embeddings are a view of the backbone like any other (``pooling="projection"``), so that they are
    computed once. Nothing is trained, and no label is looked at but to score.

    Args:
        recipe: the backbone, which has a text tower beside its image tower (CLIP, SigLIP), and the data; as of
            `hftl.run`.
        prompts: what is said of a label, ``{label}`` standing for its name; several are averaged.
        out: a new folder to write the classifier to, as a model that `hftl.load` reads; None to write none.
        offline: use only what is on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        quiet: print nothing but errors.

    Raises:
        UserError: the backbone has no text tower, the data have no classes, or a prompt no place for a label.
        HftlError: the folder cannot be written, or does not compute what was found.
    """
    check_templates(prompts)
    recipe, _ = as_recipe(recipe)
    probe = probe_of(recipe).model_copy(update={"pooling": "projection", "hidden": None})
    recipe = recipe.model_copy(update={"method": probe})
    folder = Path(out).expanduser() if out else None
    if folder and folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise UserError(f"{folder} exists; give another folder with --out")
    with reading(offline=offline, allow_pickle=allow_pickle, on_bad_row=on_bad_row, quiet=quiet) as reader:
        spec, target, data = reader.inputs(recipe)
        if not data.task.is_exclusive:
            raise DataError(
                f"zero-shot says which one label fits best, and these data are {data.task.words}; state "
                "--task single_label if a row has one"
            )
        # The training rows are not read: nothing is learned from them.
        asked = replace(data, train=data.train.select(np.zeros(0, dtype=np.int64)), validation=None)
        views = [view_of(recipe, target.backbone)]
        stored = stored_features(spec, target, asked, views, reader.say, on_bad_row=on_bad_row, quiet=reader.quiet)
        said = [prompts_of(label, prompts) for label in data.label_names]
        reader.say.print(f"prompts   {said[0][0]!r} and so on, {len(said[0]):,} for each of {len(said):,} labels")
        model, weight, bias = _classifier(target, said)
        test = stored.splits["test"]
        logits = test.columns["features"] @ weight.T + bias
        labels = test.split.labels
        rows = np.arange(len(labels))
        criterion, groups = Criterion.of_task(data.task), test.split.marks.groups
        score = scored(criterion, labels, rows, logits.numpy(), seed=recipe.seed, groups=groups)
        store = FeatureStore(cache_root())
        # For a run that starts from these prompts, and for one that has none and is told of what was asked last.
        for of in (prompts, None):
            key = _key(target.backbone, test.split, test.digests, data, store.file_digests, of)
            keep_remembered(store.root / MEMORY, key, score.interval.value)
        if folder and PartialState().is_main_process:
            # Written beside, so that a folder of that name is always a whole and proved one.
            draft = folder.with_name(f".{folder.name}.unfinished")
            shutil.rmtree(draft, ignore_errors=True)
            device = PartialState().device
            evidence = Evidence(
                test.split,
                data.task,
                logits,
                probe.mixed_precision,
                stored.content.equal_lengths,
                device,
                probe.storage,
                logit_slack(test.columns["features"], weight, probe.storage),
            )
            try:
                with writing(folder):
                    written = export_pooled(
                        target, _dual(target).pooling, [Dense(weight, bias)], None, draft, model.body
                    )
                prove_exports(written, target, evidence, reader.say.print)
                with writing(folder):
                    draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    found = logits.argmax(1).numpy() == labels
    counts = np.bincount(labels, minlength=len(data.label_names))
    majority = float(counts.max() / len(labels))
    told = [
        LabelFound(name, said[i][0], int(counts[i]), float(found[labels == i].mean()) if counts[i] else 0.0)
        for i, name in enumerate(data.label_names)
    ]
    advice = f"Without a label: {criterion.name} {score.interval}; the most frequent class has {majority:.3f}."
    place = str(folder) if folder else None
    return ZeroShot(criterion.name, score.interval, majority, len(labels), list(prompts), told, place, advice)


def zero_shot_start(method: FineTune, target: Target, data: Data) -> dict[str, Tensor]:
    """The head's parameters that fine-tuning starts from: the text tower's embeddings of the label names.

    Raises:
        UserError: the backbone has no text tower, or a prompt has no place for a label.
    """
    if not data.task.is_exclusive:
        raise DataError(f"init='zero-shot' is for one label a row, and these data are {data.task.words}: leave it out")
    templates = method.prompts or [PROMPT]
    check_templates(templates)
    _, weight, bias = _classifier(target, [prompts_of(label, templates) for label in data.label_names])
    return {f"{HEAD}.weight": weight, f"{HEAD}.bias": bias}


def known_zero_shot(target: Target, data: Data, digests: Digests | None, prompts: Sequence[str] | None) -> float | None:
    """The accuracy that `zero_shot` found of a backbone on these very test rows; None where nobody asked.

    Args:
        target: the backbone.
        data: with the test rows.
        digests: the names (n, 16) of these rows; None to find them.
        prompts: what was said of the labels; None for what was asked last.
    """
    store = FeatureStore(cache_root())
    known: Mapping[str, Any] = remembered(store.root / MEMORY)
    # A plugin's backbone says in its own words what it is.
    if not known or not data.task.is_exclusive or not isinstance(target.backbone, ImageBackbone):
        return None
    if digests is None:
        digests, _ = digest_rows(data.test.inputs, store.file_digests)
    value = known.get(_key(target.backbone, data.test, digests, data, store.file_digests, prompts))
    return float(value) if isinstance(value, float) else None


def _classifier(target: Target, said: Sequence[Sequence[str]]) -> tuple[PooledClassifier, Tensor, Tensor]:
    """The model, and the weight and bias that its text tower gives."""
    backbone = _dual(target)
    model: Any
    model, _ = target.build()
    weight, bias = text_classifier(model.body, backbone.source.folder, said)
    return model, weight, bias


def _dual(target: Target) -> BareImageBackbone:
    backbone = target.backbone
    if not isinstance(backbone, BareImageBackbone) or backbone.pooling.kind != "projection":
        raise BackboneError(f"{backbone.name} has no text tower beside an image tower, so that it knows no labels")
    return backbone


def _key(
    backbone: Backbone,
    test: Split,
    digests: Digests,
    data: Data,
    index: StatIndex,
    prompts: Sequence[str] | None,
) -> str:
    """What a result is remembered by: the model, its preprocessing, the rows, their labels, what was said of them."""
    identity, weights = backbone.identity(), digest_weights(backbone, index)
    named = [identity.get("model"), identity.get("commit"), identity["config"], identity["processor"]]
    named += [None if weights is None else weights.tobytes().hex(), data.label_names]
    named += [] if prompts is None else [list(prompts)]
    what = hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=16)
    what.update(digests.tobytes() + test.labels.tobytes())
    return what.hexdigest()

"""What a recipe names, found: its backbone, its data, and their stored features.

Whatever works on a recipe begins here: a run, and every question that the scout answers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from hftl.backbones.loading import for_words, load_backbone
from hftl.backbones.matching import data_for
from hftl.backbones.protocol import Backbone, Target
from hftl.criterion import Criterion, criterion_of
from hftl.data import Data
from hftl.data.augment import Augmentation
from hftl.data.dataset import bytes_of, lines_of
from hftl.data.division import fold_count
from hftl.data.drop import without_rows
from hftl.data.limit import limited
from hftl.data.marks import Division
from hftl.errors import RecipeError
from hftl.frozen.augmented import Views, add_views, check_views
from hftl.frozen.bounded import Memory, Solved, give_back_freed
from hftl.frozen.extract import Extractor, extract
from hftl.frozen.features import StoredFeatures, features_of
from hftl.frozen.rounding import error_in_words
from hftl.frozen.view import View
from hftl.heads.basis import STRENGTHS_OF_A_PATH
from hftl.heads.nested import FOLDS_THAT_SHARE
from hftl.methods import Head
from hftl.parallel import processes_here
from hftl.plugins.registry import find
from hftl.plugins.spec import BackboneOptions, BackboneSpec
from hftl.recipes import Recipe
from hftl.runs.console import print_bad_rows, print_features, print_inputs
from hftl.store.store import FeatureStore, cache_root
from hftl.tasks import Task
from hftl.terminal import Terminal
from hftl.wording import plural, printable, size_in_bytes

# What is kept of each row and output, beside features: of a class its logit by the heads of folds, and copies of that
# while it is judged; of a label the same in float64, with what calibration asks of it; of a target its errors.
_CLASS_BYTES, _LABEL_BYTES, _TARGET_BYTES = 16, 160, 48


def inputs_of(
    recipe: Recipe, say: Terminal, options: BackboneOptions, *, set_aside: bool = True
) -> tuple[BackboneSpec, Target, Data]:
    """Find the backbone and the data that a recipe names, and say what was found and inferred.

    Args:
        recipe: what to find.
        say: where it is said.
        options: of the backbone.
        set_aside: whether rows are drawn to test on where the data bring none.
    """
    if recipe.memory is not None:
        give_back_freed()
    probe = probe_of(recipe)
    spec, backbone = backbone_of(recipe, options)
    if probe.hidden and backbone.wants != "text":
        raise RecipeError("hidden: only the format of sentence-transformers has a place for it, and that is for texts")
    data = data_of(recipe, backbone, set_aside=set_aside)
    if data.task.of_words:
        backbone = for_words(backbone)
        if probe.pooling != "native":
            raise RecipeError(
                f"pooling={probe.pooling!r} makes one vector of a text, and words have labels: leave it out"
            )
    elif backbone.pipeline_tag == "token-classification":
        raise RecipeError(
            f"{backbone.name}: transformers has token classification for it and nothing for whole texts: give "
            "sentences whose words have tags, or another backbone"
        )
    check_views(recipe.method, backbone.modality, has_classes=data.task.has_classes)
    print_inputs(say, backbone, data)
    criterion = chooses(recipe, data.task)
    if criterion.is_stated and data.task.of_words:
        raise RecipeError("metric: of tagged words F1 chooses the epoch and the held-out loss the head; leave it out")
    if criterion.is_stated:
        say.print(f"metric    {printable(criterion.name)} chooses, {criterion.direction}")
    if isinstance(recipe.method, Head) and data.validation is not None and recipe.method.folds != Head().folds:
        say.print("          the data bring a validation split, which the strength is chosen on: folds are not used")
    for note in backbone.notes:
        say.print(f"          {note}")
    return spec, Target(backbone, backbone.config(data.task, data.label_names)), data


def backbone_of(recipe: Recipe, options: BackboneOptions) -> tuple[BackboneSpec, Backbone]:
    """The backbone that a recipe names, as its method reads it, and how it is registered; no data are read."""
    if recipe.depth == "auto":
        raise RecipeError("depth='auto' is for `hftl run`, which chooses one: give a number, or leave it out")
    spec, probe = find(recipe.backbone), probe_of(recipe)
    backbone = load_backbone(
        spec,
        options,
        recipe.depth,
        probe.pooling,
        trains_body=not isinstance(recipe.method, Head),
        precision=probe.mixed_precision,
        quantize=probe.quantize,
    )
    return spec, backbone


def chooses(recipe: Recipe, task: Task) -> Criterion:
    """The metric that chooses in a recipe whose labels are of this task.

    Raises:
        RecipeError: the task has no such metric, or nobody says which way of it is better.
    """
    return criterion_of(task, recipe.metric, recipe.greater_is_better, recipe.metrics)


def data_of(recipe: Recipe, backbone: Backbone, *, set_aside: bool = True) -> Data:
    """The rows that a recipe names, as a backbone reads them, without those to drop; see `inputs_of`."""
    data = data_for(
        backbone,
        recipe.data,
        input_columns=recipe.input_columns,
        label_columns=recipe.label_columns,
        task=recipe.task,
        unlabelled=recipe.unlabelled,
        label_separator=recipe.label_separator,
        seed=recipe.seed,
        test_size=recipe.test_size,
        validation_size=recipe.validation_size,
        set_aside=set_aside,
        out_of_scope=recipe.out_of_scope,
        division=Division(recipe.group, recipe.time, recipe.stratify, recipe.fold),
    )
    if recipe.drop:
        data = without_rows(data, recipe.drop)
    return limited(data, recipe.limit, recipe.seed) if recipe.limit else data


def probe_of(recipe: Recipe) -> Head:
    """The head that a method trains, or that fine-tuning starts from."""
    return recipe.method if isinstance(recipe.method, Head) else recipe.method.probe


def view_of(recipe: Recipe, backbone: Backbone) -> View:
    """What that head reads of the backbone."""
    probe = probe_of(recipe)
    return View.of(backbone, probe.pooling, probe.mixed_precision, probe.storage)


def views_of(recipe: Recipe) -> Views | None:
    """The views of pictures that a recipe's head asks for; None for pictures as they are."""
    method = recipe.method
    if not isinstance(method, Head) or not method.has_views:
        return None
    return Views(method.views, method.test_views, Augmentation.of(method))


def memory_of(recipe: Recipe, data: Data, say: Terminal, *, crossed: int = 0) -> Memory:
    """What rows may take, by a recipe.

    Args:
        recipe: says how much.
        data: the rows.
        say: where it is said that features are read in blocks.
        crossed: how many folds rows are dealt to that score them; 0 for none.
    """
    method, views = probe_of(recipe), views_of(recipe)
    reasons = [
        (crossed > 0, "--cv deals all features in memory to folds"),
        (method.hidden is not None, "a head with a hidden layer is trained on all features in memory"),
        (views is not None, "heads on several views of a picture are solved on all features in memory"),
        (recipe.out_of_scope is not None, "rows out of scope are compared with all features in memory"),
    ]
    why = next((reason for applies, reason in reasons if applies), None)
    further = (views.train - 1) * len(data.train) + (views.test - 1) * len(data.test) if views else 0
    if data.task.of_words:
        further = sum(sum(lines_of(split.labels)) - len(split) for split in data.splits())
    return Memory(
        None if recipe.memory is None else size_in_bytes(recipe.memory),
        _solved_of(recipe, data, crossed),
        bytes_of([split.inputs for split in data.splits()]),
        why,
        say,
        further=further,
        processes=processes_here(),
    )


def _solved_of(recipe: Recipe, data: Data, crossed: int) -> Solved:
    """What decides how much the head of a recipe takes while it is solved."""
    probe, task = probe_of(recipe), data.task
    strengths = len(probe.strengths) if probe.strengths else STRENGTHS_OF_A_PATH
    judged = 4 * strengths if chooses(recipe, task).is_stated else 0
    each = task.case(
        single_label=_CLASS_BYTES,
        multi_label=_LABEL_BYTES,
        regression=_TARGET_BYTES + judged,
        token_labels=_CLASS_BYTES,
    )
    heads = 1 if data.validation is not None else fold_count(data.train, probe.folds)
    shared = crossed if crossed in FOLDS_THAT_SHARE else 0
    return Solved(len(data.label_names), each, task.link == "sigmoid", heads, strengths, shared)


def stored_features(
    spec: BackboneSpec,
    target: Target,
    data: Data,
    views: Sequence[View],
    say: Terminal,
    *,
    on_bad_row: str,
    quiet: bool,
    listed: str = "",
    gather: bool = True,
    trust: Sequence[str] = (),
    augmented: Views | None = None,
    memory: Memory | None = None,
    by: Extractor = extract,
) -> StoredFeatures:
    """The features of all rows, computed where they are missing, as `features_of` gives them.

    Args:
        spec: the backbone as it is registered.
        target: the backbone.
        data: the rows.
        views: what is kept of each row.
        say: where what it took is said.
        on_bad_row: as of `features_of`.
        quiet: as of `features_of`.
        listed: the file that will list bad rows.
        gather: as of `features_of`.
        trust: as of `features_of`.
        augmented: the views of training and test pictures that are to be stored, and read, as well.
        memory: as of `features_of`.
        by: as of `features_of`.
    """
    store = FeatureStore(cache_root())
    how: dict[str, Any] = {"on_bad_row": on_bad_row, "quiet": quiet, "trust": trust, "memory": memory, "by": by}
    features = features_of(store, target, spec.origin, data, views, gather=gather, **how)
    print_features(say, features.counts)
    if augmented:
        started = time.monotonic()
        done = add_views(store, target, spec.origin, features, views[0], augmented, gather=gather, quiet=quiet)
        features.seconds += time.monotonic() - started
        features.rounding = max(features.rounding, done.rounding)
        features.counts["views_computed"] = done.computed
        say.print(f"views     {augmented.said}; {plural(done.computed, 'view')} computed")
    if (storage := views[0].storage) != "float32":
        error = error_in_words(features.rounding, storage)
        say.print(f"          in {storage} on the disk, half the bytes of float32: a number is rounded {error}")
    for each in features.trusted:
        say.print(f"foreign   {printable(each.said())}")
    for folder in (path for space in features.spaces for path in space.passed_over):
        say.print(
            f"          {folder} is of a format that this hftl does not read: it computed apart, in another folder; "
            "update hftl to use it"
        )
    if features.content.equal_lengths:
        say.print(
            "          padding changes this model's numbers: rows ran, and are to be run, in batches of equal length"
        )
    if views[0].pooling == "last" and features.content.cut.kind == "linear":
        say.print(f"          the last token is what {features.content.architecture} reads by itself (pooling native)")
    print_bad_rows(say, features.bad, listed)
    return features

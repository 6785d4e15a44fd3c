"""A recipe's features without training: computed, or looked up in the store."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

from hftl.backbones.bare import Bare
from hftl.backbones.protocol import Backbone
from hftl.backbones.sentence import POOLINGS
from hftl.data import Data
from hftl.errors import RecipeError
from hftl.frozen.bounded import NOTHING_SOLVED, Memory
from hftl.frozen.extract import extract
from hftl.frozen.matrix import Features
from hftl.frozen.on_ray import RayExtractor, check_ray
from hftl.frozen.recipe import inputs_of, memory_of, probe_of, stored_features, view_of, views_of
from hftl.frozen.shares import Share, StoredRows, stored_rows
from hftl.frozen.stored_matrix import StoredMatrix
from hftl.frozen.view import View
from hftl.hub.client import staying_offline
from hftl.methods import Pooling
from hftl.parallel import met_everywhere, start_processes
from hftl.plugins.spec import BackboneOptions
from hftl.recipes import Recipe
from hftl.runs.again import RecipeLike, as_recipe
from hftl.runs.console import quiet_libraries
from hftl.store.store import FeatureStore, cache_root
from hftl.terminal import Terminal
from hftl.wording import size_in_bytes


def features(
    recipe: RecipeLike,
    *,
    pooling: Pooling | None = None,
    also: Sequence[Pooling] = (),
    offline: bool = False,
    allow_pickle: bool = False,
    quiet: bool = False,
    on_bad_row: str = "error",
    part: str | None = None,
    on: Literal["ray"] | None = None,
) -> Features:
    """Compute what is missing of a recipe's features and return all of them, without training.

    Args:
        recipe: the backbone and the data; as of `run`.
        pooling: as of `Head`; None for the recipe's own.
        also: other poolings to store from the same pass.
        offline: use only what is on this machine.
        allow_pickle: read a backbone's weights that are there only as a pickle, as nothing but tensors.
        quiet: print nothing but errors.
        on_bad_row: ``"error"``, or ``"skip"`` to leave out rows that cannot be decoded.
        part: ``"3/64"`` for every 64th row alone, from the third on, where other machines do the others.
        on: ``"ray"`` to compute on the workers of a Ray cluster; None for this process.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        StoreError: features cannot be stored.
    """
    recipe, _ = as_recipe(recipe)
    stored = stored_matrix(
        recipe,
        pooling=pooling,
        also=also,
        offline=offline,
        allow_pickle=allow_pickle,
        quiet=quiet,
        on_bad_row=on_bad_row,
        part=part,
        on=on,
    )
    if recipe.memory is not None:
        rows = len(stored.about)
        why = "hftl.features returns all features"
        bound = Memory(size_in_bytes(recipe.memory), NOTHING_SOLVED, 0, why, Terminal(quiet=True))
        bound.in_blocks(stored.features.content.cut, rows)
    return stored.in_memory()


def stored_matrix(
    recipe: RecipeLike,
    *,
    pooling: Pooling | None = None,
    also: Sequence[Pooling] = (),
    offline: bool = False,
    allow_pickle: bool = False,
    quiet: bool = False,
    on_bad_row: str = "error",
    part: str | None = None,
    on: Literal["ray"] | None = None,
) -> StoredMatrix:
    """As `features`, of which the matrix stays in the store, however large it is."""
    recipe, _ = as_recipe(recipe)
    share = Share.parse(part) if part else None
    say = Terminal(quiet=quiet or not start_processes().is_main_process)
    recipe = _pooled_by(recipe, pooling)
    augmented = views_of(recipe)
    if on is not None:
        check_ray()
        if start_processes().num_processes > 1:
            raise RecipeError("--on ray starts workers of its own: run it without a launcher")
        if augmented:
            say.print("views     left out: Ray's workers compute pictures as they are; a run computes the others")
            augmented = None
    probe = probe_of(recipe)
    options = BackboneOptions(recipe.max_length, offline, allow_pickle)
    with quiet_libraries(), staying_offline(offline):
        with met_everywhere():
            spec, target, data = inputs_of(recipe, say, options)
            if share:
                data = share.of_data(data)
                say.print(f"part      {part}: {sum(data.sizes().values()):,} of these rows")
        check_beside(target.backbone, data, probe.pooling, also)
        asked = (probe.pooling, *also)
        views = [View.of(target.backbone, each, probe.mixed_precision, probe.storage) for each in asked]
        memory_of(recipe, data, say).holds(sum(data.sizes().values()))
        stored = stored_features(
            spec,
            target,
            data,
            views,
            say,
            on_bad_row=on_bad_row,
            quiet=quiet,
            gather=False,
            augmented=augmented,
            by=RayExtractor(recipe, options, data.task, data.label_names) if on else extract,
        )
    return StoredMatrix.of(stored, data)


def check_beside(backbone: Backbone, data: Data, pooling: Pooling, also: Sequence[Pooling]) -> None:
    """See that what is to be stored beside one pooling comes from the same pass.

    Raises:
        RecipeError: it does not, or the model has no such pooling.
    """
    if also and data.task.of_words:
        raise RecipeError("words have features of one kind: leave out the other poolings")
    if also and backbone.wants != "text" and "native" in (pooling, *also):
        raise RecipeError(
            "pooling=native: pictures are pooled of the base model, and what the classification class reads comes "
            "from another pass: ask for native alone"
        )
    for each in also:
        if isinstance(backbone, Bare):
            asked = copy(backbone)
            asked.asked = each
            # Raises where this model has no such pooling.
            assert asked.pooling
        elif each not in ("native", *POOLINGS):
            raise RecipeError(f"pooling={each!r} comes from another pass: ask for it alone")


def missing_features(
    recipe: RecipeLike,
    *,
    pooling: Pooling | None = None,
    offline: bool = False,
    quiet: bool = False,
    part: str | None = None,
) -> StoredRows:
    """Which rows of a recipe's data have no features yet; nothing is computed.

    Args:
        recipe: the backbone and the data; as of `run`.
        pooling: of the features; None for the recipe's own.
        offline: use only what is on this machine.
        quiet: print nothing but errors.
        part: ``"3/64"`` to look at one part alone.

    Raises:
        UserError: the recipe, its data or its backbone cannot be used.
        StoreError: the store cannot be read.
    """
    recipe, _ = as_recipe(recipe)
    share = Share.parse(part) if part else None
    recipe = _pooled_by(recipe, pooling)
    with quiet_libraries(), staying_offline(offline):
        say = Terminal(quiet=quiet)
        spec, target, data = inputs_of(recipe, say, BackboneOptions(recipe.max_length, offline))
        if views_of(recipe):
            say.print("views     left out: counted are pictures as they are")
        view = view_of(recipe, target.backbone)
        return stored_rows(FeatureStore(cache_root()), spec, target, share.of_data(data) if share else data, view)


def _pooled_by(recipe: Recipe, pooling: Pooling | None) -> Recipe:
    """The recipe with another pooling, where one is asked for."""
    if pooling is None:
        return recipe
    return recipe.model_copy(update={"method": recipe.method.model_copy(update={"pooling": pooling})})

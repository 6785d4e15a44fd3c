"""Every hook of hftl on one page.

A plugin is a module (or object) named in the entry-point group ``hftl`` whose functions are marked with
``@hftl.hookimpl``. A hook implementation may take fewer arguments than its specification.
Nothing called at registration may import torch: registering is metadata, loading comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import numpy as np
    import typer

    from hftl.plugins.spec import BackboneSpec

hookspec = pluggy.HookspecMarker("hftl")
hookimpl = pluggy.HookimplMarker("hftl")


@hookspec
def hftl_register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Register backbones by name.

    Called when a command first needs to know which backbones there are. Since 0.1.

    Args:
        register: to be called with a `hftl.BackboneSpec` once for each backbone. A name that another plugin has
            claimed is an error for whoever asks for that name.
    """


@hookspec(firstresult=True)
def hftl_resolve_backbone(ref: str) -> BackboneSpec | None:
    """Claim a reference that nobody registered, such as a family ``timm/…`` or a folder of a certain kind.

    Called for each reference that is no registered name, before hftl tries it as a folder and as a Hub id; the first
    plugin in the order of names that does not return None has it. Since 0.1.

    Args:
        ref: what the user wrote.

    Raises:
        BackboneError: the reference is of this plugin's family and cannot be used; the user sees the message.
    """


@hookspec
def hftl_register_recipes(register: Callable[[str, str], None]) -> None:
    """Register recipes; the entry-point group ``hftl.recipes`` does the same without code.

    Called when a recipe is asked for by name, and by ``hftl recipes``. Since 0.1.

    Args:
        register: to be called with a name and ``"package.module:function"``, once for each recipe.
    """


@hookspec
def hftl_register_metrics(
    register: Callable[[str, Callable[[np.ndarray, np.ndarray, str], Mapping[str, float]]], None],
) -> None:
    """Register metrics that are computed beside hftl's own.

    Called after a head is trained, before predictions are evaluated. Since 0.1.

    Args:
        register: to be called with a name and a function, once for each metric. The function gets logits (n, C)
            float32, labels ((n,) int64 class numbers, or (n, C) for several labels or targets) and the task
            (``"single_label"``, ``"multi_label"`` or ``"regression"``). The values that it returns stand in
            ``metrics.json`` under ``eval`` by their names; an empty mapping says that it does not apply. A name that
            is there already is an error. One that gives a value of its own name may choose
            (``hftl run RECIPE --metric NAME``); an attribute ``greater_is_better`` of it says which way is better.
    """


@hookspec
def hftl_register_commands(app: typer.Typer) -> None:
    """Add commands to the ``hftl`` command line.

    Called by every command, so it must be quick. A command cannot replace one that is there. Since 0.1.

    Args:
        app: a `typer.Typer` for this plugin's commands.
    """


@hookspec
def hftl_run_start(recipe: Mapping[str, Any], folder: str) -> None:
    """A run begins.

    Called on the main process when the run's folder and its ``recipe.json`` are there, before any feature is
    computed. Since 0.1.

    Args:
        recipe: what ``recipe.json`` holds.
        folder: the run's folder.
    """


@hookspec
def hftl_log(event: Mapping[str, Any]) -> None:
    """Something was logged.

    Called on the main process after each line of ``events.jsonl`` is written. Since 0.1.

    Args:
        event: the line: ``event`` (its kind), ``seconds`` since the run began, and what belongs to that kind.
    """


@hookspec
def hftl_run_end(metrics: Mapping[str, Any], folder: str) -> None:
    """A run ended well.

    Called on the main process when everything is written. Since 0.1.

    Args:
        metrics: what ``metrics.json`` holds.
        folder: the run's folder.
    """

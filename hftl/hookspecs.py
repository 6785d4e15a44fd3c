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
    from hftl.registry import BackboneSpec

hookspec = pluggy.HookspecMarker("hftl")
hookimpl = pluggy.HookimplMarker("hftl")


@hookspec
def hftl_register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Register backbones by name: call ``register(BackboneSpec(...))`` once for each. Since 0.1."""


@hookspec(firstresult=True)
def hftl_resolve_backbone(ref: str) -> BackboneSpec | None:
    """Claim a reference that nobody registered, such as a family ``timm/…``; None passes it on. Since 0.1."""


@hookspec
def hftl_register_recipes(register: Callable[[str, str], None]) -> None:
    """Register recipes: call ``register(name, "package.module:function")`` once for each. Since 0.1."""


@hookspec
def hftl_register_metrics(register: Callable[[str, Callable[..., Mapping[str, float]]], None]) -> None:
    """Register a metric: ``register(name, compute)``; ``compute(logits, labels)`` gets (n, C) float32. Since 0.1."""


@hookspec
def hftl_register_commands(app: Any) -> None:
    """Add commands to the ``hftl`` command line; ``app`` is its ``typer.Typer``. Since 0.1."""


@hookspec
def hftl_run_start(recipe: Mapping[str, Any], folder: str) -> None:
    """A run begins, on its main process; ``recipe`` is what ``recipe.json`` holds. Since 0.1."""


@hookspec
def hftl_log(event: Mapping[str, Any]) -> None:
    """One line of ``events.jsonl`` was logged, on the main process. Since 0.1."""


@hookspec
def hftl_run_end(metrics: Mapping[str, Any], folder: str) -> None:
    """A run ended well, on its main process; ``metrics`` is what ``metrics.json`` holds. Since 0.1."""

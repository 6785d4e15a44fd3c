"""The registry, from a name to a `BackboneSpec`: registered names, then families of plugins, then close matches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hftl.errors import BackboneError, HftlError, PluginError
from hftl.plugins.manager import plugins
from hftl.plugins.spec import BackboneSpec, MetricFunction, Plugin, PluginMetric
from hftl.wording import close_matches, named_error, suggest

if TYPE_CHECKING:
    import numpy as np


@lru_cache(maxsize=1)
def backbone_claims() -> dict[str, list[BackboneSpec]]:
    """Every name that a plugin registered a backbone under, with all that did."""
    claims: dict[str, list[BackboneSpec]] = {}
    for owner, specs in plugins().collect("hftl_register_backbones", _checked):
        for spec in specs:
            claims.setdefault(spec.name, []).append(_stamped(spec, owner))
    return claims


def find(ref: str) -> BackboneSpec:
    """The backbone that a reference names.

    Args:
        ref: a registered name, a reference of a family that a plugin claims, a Hub id ``user/name[@revision]``, or a
            folder.

    Raises:
        BackboneError: nothing answers to it; the message lists close matches and plugins that failed.
        PluginError: two plugins claim the name.
    """
    known = backbone_claims()
    if ref in known:
        return _uncontested(ref, known[ref])
    # Whoever claims a family may say what is wrong with a reference to it; that is for the user.
    for owner, spec in plugins().each("hftl_resolve_backbone", let_through=(HftlError,), ref=ref):
        if spec is not None:
            return _stamped(_checked(spec, owner.name), owner)
    raise BackboneError(f"no backbone is called {ref!r}{suggestion(ref)}")


def suggestion(ref: str) -> str:
    """The end of a message about an unknown backbone: close matches, and plugins that might have had it."""
    names = list(backbone_claims())
    last_parts = {name.rsplit("/", 1)[-1]: name for name in names}
    close = close_matches(ref, names, cutoff=0.5)
    close += [last_parts[part] for part in close_matches(ref.rsplit("/", 1)[-1], last_parts)]
    close = list(dict.fromkeys(close))[:3]
    return (suggest(close) or "; `hftl backbones` lists those registered") + plugins().suspects()


def metrics() -> list[PluginMetric]:
    """Every registered metric, in the order of its name.

    Raises:
        PluginError: two plugins claim one name.
    """
    registered: dict[str, PluginMetric] = {}
    for owner, claims in plugins().collect("hftl_register_metrics", _metric):
        for name, compute in claims:
            if name in registered:
                raise PluginError(_claimed("metric", name, registered[name].plugin.package, owner.package))
            registered[name] = PluginMetric(name, compute, owner)
    return sorted(registered.values(), key=lambda metric: metric.name)


def add_metrics(values: dict[str, Any], logits: np.ndarray, labels: np.ndarray, task: str) -> None:
    """Add what registered metrics make of predictions; a metric that fails is left out, and said.

    Args:
        values: what is known already; gets the new values.
        logits: (n, C) float32.
        labels: (n,) int64 class numbers, or (n, C).
        task: ``"single_label"``, ``"multi_label"`` or ``"regression"``.

    Raises:
        PluginError: a metric's value has the name of one that is there already.
    """
    for metric in metrics():
        try:
            computed = {str(name): float(value) for name, value in metric.compute(logits, labels, task).items()}
        except (Exception, SystemExit) as error:
            plugins().warn(metric.plugin, f"metric {metric.name!r} failed and is left out: {named_error(error)}")
            continue
        for name in computed:
            if name in values:
                raise PluginError(
                    f"metric {metric.name!r} of {metric.plugin.package} gives {name!r}, which is there already; "
                    f"leave the plugin out with HFTL_PLUGINS"
                )
        values.update({name: value if math.isfinite(value) else None for name, value in computed.items()})


def _uncontested(name: str, claims: Sequence[BackboneSpec]) -> BackboneSpec:
    if conflict := conflict_of(name, claims):
        raise PluginError(conflict)
    return claims[0]


def conflict_of(name: str, claims: Sequence[BackboneSpec]) -> str | None:
    """What is wrong with a name that more than one plugin registered; None if nothing is."""
    return _claimed("backbone", name, claims[0].plugin, claims[1].plugin) if len(claims) > 1 else None


def _claimed(kind: str, name: str, one: str, other: str) -> str:
    return f"{kind} {name!r} is claimed by two plugins, {one} and {other}; uninstall one, or choose with HFTL_PLUGINS"


def _metric(name: str, compute: MetricFunction) -> tuple[str, MetricFunction]:
    if not callable(compute):
        raise PluginError(f"metric {name!r} is a {type(compute).__name__} where a function is due")
    return name, compute


def _checked(spec: BackboneSpec, plugin: str = "") -> BackboneSpec:
    where = f"plugin {plugin!r} gave" if plugin else "it gave"
    if not isinstance(spec, BackboneSpec):
        raise PluginError(f"{where} a {type(spec).__name__} where a BackboneSpec is due")
    if not (isinstance(spec.name, str) and spec.name and callable(spec.load)):
        raise PluginError(f"{where} a BackboneSpec whose name is empty or whose load is no function")
    return spec


def _stamped(spec: BackboneSpec, owner: Plugin) -> BackboneSpec:
    return replace(spec, plugin=owner.package, plugin_version=owner.version)

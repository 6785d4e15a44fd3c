"""From a name to a backbone: registered names first, then families that plugins claim, then close matches.

A `BackboneSpec` is metadata and a lazy loader: making one, listing them and choosing one import neither torch nor
transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from hftl.errors import BackboneError, HftlError, PluginError
from hftl.plugins import Plugin, one_line, plugins

if TYPE_CHECKING:
    import numpy as np

    from hftl.backbones.protocol import Backbone


MetricFunction: TypeAlias = "Callable[[np.ndarray, np.ndarray, str], Mapping[str, float]]"


@dataclass(frozen=True)
class BackboneOptions:
    """What a run asks of a backbone when it is loaded.

    Attributes:
        max_length: tokens kept of a text; None for what the model allows.
        offline: use only what is already on this machine.
        allow_pickle: read weights that are there only as a pickle, as nothing but tensors.
    """

    max_length: int | None = None
    offline: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone that can be asked for by name.

    Attributes:
        name: what the user writes in ``backbone=`` or ``--backbone``.
        modality: what it reads: ``"image"``, ``"text"``, or a plugin's own word.
        load: makes the `Backbone` when it is needed; may import whatever it likes.
        description: one line for ``hftl backbones``.
        parameters: number of parameters, where known.
        license: SPDX identifier of the weights, where known.
        plugin: who registered it; filled in by hftl.
        plugin_version: that package's version; filled in by hftl.
    """

    name: str
    modality: str
    load: Callable[[BackboneOptions], Backbone]
    description: str = ""
    parameters: int | None = None
    license: str | None = None
    plugin: str = ""
    plugin_version: str = ""


def backbones() -> dict[str, BackboneSpec]:
    """Every registered backbone by name.

    Raises:
        PluginError: two plugins claim one name.
    """
    return {name: _only(name, claims) for name, claims in backbone_claims().items()}


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
        return _only(ref, known[ref])
    # Whoever claims a family may say what is wrong with a reference to it; that is for the user.
    for owner, spec in plugins().each("hftl_resolve_backbone", let_through=(HftlError,), ref=ref):
        if spec is not None:
            return _stamped(_checked(spec, owner.name), owner)
    raise BackboneError(f"no backbone is called {ref!r}{suggestion(ref)}")


def load(spec: BackboneSpec, options: BackboneOptions) -> Backbone:
    """Load a backbone, and pin what goes wrong inside a plugin on that plugin.

    Raises:
        BackboneError: the model cannot be found or used.
        PluginError: the plugin's loader raised, or returned something that is no backbone.
    """
    from hftl.backbones.protocol import Backbone

    try:
        backbone = spec.load(options)
    except HftlError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {spec.plugin!r} could not load {spec.name!r}: {one_line(error)}") from error
    if not isinstance(backbone, Backbone):
        raise PluginError(
            f"plugin {spec.plugin!r} loads {spec.name!r} as a {type(backbone).__name__}, which is no hftl.Backbone"
        )
    if backbone.commit is None and spec.name in backbone_claims():
        # Where a package keeps its files says nothing to anybody else; its registered name can be asked for again.
        backbone.name = spec.name
    return backbone


def suggestion(ref: str) -> str:
    """The end of a message about an unknown backbone: close matches, and plugins that might have had it."""
    names = list(backbone_claims())
    short = {name.rsplit("/", 1)[-1]: name for name in names}
    close = difflib.get_close_matches(ref, names, n=3, cutoff=0.5)
    close += [short[s] for s in difflib.get_close_matches(ref.rsplit("/", 1)[-1], list(short), n=3, cutoff=0.6)]
    close = list(dict.fromkeys(close))[:3]
    said = f"; did you mean {', '.join(close)}?" if close else "; `hftl backbones` lists those registered"
    return said + plugins().suspects()


@dataclass(frozen=True)
class Metric:
    """A metric that a plugin registered.

    Attributes:
        name: what it is called.
        compute: gives values by name of logits (n, C) float32, labels (n,) int64 or (n, C), and the task.
        plugin: who registered it.
    """

    name: str
    compute: MetricFunction
    plugin: Plugin


def metrics() -> list[Metric]:
    """Every registered metric, in the order of its name.

    Raises:
        PluginError: two plugins claim one name.
    """
    found: dict[str, Metric] = {}
    for owner, claims in plugins().collect("hftl_register_metrics", _metric):
        for name, compute in claims:
            if name in found:
                raise PluginError(_claimed("metric", name, found[name].plugin.package, owner.package))
            found[name] = Metric(name, compute, owner)
    return sorted(found.values(), key=lambda metric: metric.name)


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
            plugins().warn(metric.plugin, f"metric {metric.name!r} failed and is left out: {one_line(error)}")
            continue
        for name in computed:
            if name in values:
                raise PluginError(
                    f"metric {metric.name!r} of {metric.plugin.package} gives {name!r}, which is there already; "
                    f"leave the plugin out with HFTL_PLUGINS"
                )
        values.update(computed)


def _only(name: str, claims: Sequence[BackboneSpec]) -> BackboneSpec:
    if len(claims) > 1:
        raise PluginError(_claimed("backbone", name, claims[0].plugin, claims[1].plugin))
    return claims[0]


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

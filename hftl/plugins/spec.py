"""`BackboneSpec` and `PluginMetric`: what a plugin registers, metadata and a lazy loader; `Plugin`: the record of one.

Making any of them imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from hftl.backbones.protocol import Backbone

MetricFunction: TypeAlias = "Callable[[np.ndarray, np.ndarray, str], Mapping[str, float]]"


@dataclass(frozen=True)
class Plugin:
    """One discovered plugin.

    Attributes:
        name: the entry point's name.
        package: the distribution that brought it.
        version: the distribution's version.
        hooks: the hooks it implements, sorted.
        heavy: libraries of `hftl.plugins.manager.HEAVY` that it imported before anything was asked of it.
        seconds: that its import took.
        error: why it was left out, in one line; None when it is loaded.
    """

    name: str
    package: str
    version: str
    hooks: tuple[str, ...] = ()
    heavy: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None


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
        feature_version: names the features that the plugin computes, whatever the package's version is. To be raised
            when a release changes a number, and only then: stored features of another feature version are not found.
            Empty for the package's version; then every release forgets what the one before computed.
        plugin: who registered it; filled in by hftl.
        plugin_version: that package's version; filled in by hftl.
    """

    name: str
    modality: str
    load: Callable[[BackboneOptions], Backbone]
    description: str = ""
    parameters: int | None = None
    license: str | None = None
    feature_version: str = ""
    plugin: str = ""
    plugin_version: str = ""

    @property
    def origin(self) -> dict[str, str]:
        """Who computes the features, and in which version of theirs: part of a feature space's identity."""
        return {"name": self.plugin, "version": self.feature_version or self.plugin_version}


@dataclass(frozen=True)
class PluginMetric:
    """A metric that a plugin registered.

    Attributes:
        name: what it is called.
        compute: gives values by name of logits (n, C) float32, labels (n,) int64 or (n, C), and the task.
        plugin: who registered it.
    """

    name: str
    compute: MetricFunction
    plugin: Plugin

"""From a name to a backbone: registered names first, then families that plugins claim, then close matches.

A `BackboneSpec` is metadata and a lazy loader: making one, listing them and choosing one import neither torch nor
transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from hftl.errors import BackboneError, HftlError, PluginError
from hftl.plugins import Plugin, call, one_line, plugins

if TYPE_CHECKING:
    from hftl.backbones.protocol import Backbone


@dataclass(frozen=True)
class BackboneOptions:
    """What a run asks of a backbone when it is loaded.

    Attributes:
        max_length: tokens kept of a text; None for what the model allows.
        offline: use only what is already on this machine.
    """

    max_length: int | None = None
    offline: bool = False


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


@lru_cache(maxsize=1)
def backbones() -> dict[str, BackboneSpec]:
    """Every registered backbone by name.

    Raises:
        PluginError: two plugins claim one name.
    """
    found: dict[str, BackboneSpec] = {}
    loaded = plugins()
    for implementation in loaded.hook.hftl_register_backbones.get_hookimpls():
        owner = loaded.owner(implementation.plugin)
        try:
            # One plugin at a time, so that a failure is pinned on its author.
            mine: list[BackboneSpec] = []
            call(implementation, register=mine.append)
            specs = [_stamp(spec, owner) for spec in mine]
        except Exception as error:
            loaded.reject(owner.name, f"hftl_register_backbones failed: {one_line(error)}")
            continue
        for spec in specs:
            if spec.name in found:
                raise PluginError(
                    f"backbone {spec.name!r} is claimed by two plugins, {found[spec.name].plugin} and "
                    f"{spec.plugin}; uninstall one, or choose with HFTL_PLUGINS"
                )
            found[spec.name] = spec
    return found


def find(ref: str) -> BackboneSpec:
    """The backbone that a reference names.

    Args:
        ref: a registered name, a reference of a family that a plugin claims, a Hub id ``user/name[@revision]``, or a folder.

    Raises:
        BackboneError: nothing answers to it; the message lists close matches and plugins that failed.
    """
    known = backbones()
    if ref in known:
        return known[ref]
    loaded = plugins()
    for implementation in reversed(loaded.hook.hftl_resolve_backbone.get_hookimpls()):
        spec = call(implementation, ref=ref)
        if spec is not None:
            return _stamp(spec, loaded.owner(implementation.plugin))
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
    except Exception as error:
        raise PluginError(
            f"plugin {spec.plugin!r} could not load {spec.name!r}: {one_line(error)}"
        ) from error
    if not isinstance(backbone, Backbone):
        raise PluginError(
            f"plugin {spec.plugin!r} loads {spec.name!r} as a {type(backbone).__name__}, which is no hftl.Backbone"
        )
    return backbone


def suggestion(ref: str) -> str:
    """The end of a message about an unknown backbone: close matches, and plugins that might have had it."""
    names = list(backbones())
    short = {name.rsplit("/", 1)[-1]: name for name in names}
    close = difflib.get_close_matches(ref, names, n=3, cutoff=0.5)
    close += [
        short[s] for s in difflib.get_close_matches(ref.rsplit("/", 1)[-1], list(short), n=3, cutoff=0.6)
    ]
    close = list(dict.fromkeys(close))[:3]
    said = f"; did you mean {', '.join(close)}?" if close else "; `hftl backbones` lists those registered"
    failed = plugins().failed
    if failed:
        said += f" (plugins that failed to load: {', '.join(f'{p.name}: {p.error}' for p in failed)})"
    return said


def _stamp(spec: object, owner: Plugin) -> BackboneSpec:
    if not isinstance(spec, BackboneSpec):
        raise PluginError(f"plugin {owner.name!r} gave a {type(spec).__name__} where a BackboneSpec is due")
    return replace(spec, plugin=owner.package, plugin_version=owner.version)

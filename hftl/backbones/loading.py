"""Loading a backbone that somebody registered, with what goes wrong pinned on whoever registered it."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import Any

from hftl.backbones.protocol import Backbone
from hftl.backbones.source import Source
from hftl.errors import HftlError, PluginError
from hftl.plugins.registry import backbone_claims
from hftl.plugins.spec import BackboneOptions, BackboneSpec
from hftl.wording import named_error


def load_backbone(spec: BackboneSpec, options: BackboneOptions) -> Backbone:
    """Load a backbone, and pin what goes wrong inside a plugin on that plugin.

    Raises:
        BackboneError: the model cannot be found or used.
        PluginError: the plugin's loader raised, or returned something that is no backbone.
    """
    try:
        backbone = spec.load(options)
    except HftlError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {spec.plugin!r} could not load {spec.name!r}: {named_error(error)}") from error
    if not isinstance(backbone, Backbone):
        raise PluginError(
            f"plugin {spec.plugin!r} loads {spec.name!r} as a {type(backbone).__name__}, which is no hftl.Backbone"
        )
    if backbone.commit is None and spec.name in backbone_claims():
        # Where a package keeps its files says nothing to anybody else; its registered name can be asked for again.
        backbone.name = spec.name
    return backbone


def reopened(backbone: Any, source: Source) -> Any:
    """The backbone as its class makes it of another folder, with nothing remembered.

    Args:
        backbone: one with an attribute ``source``, as `hftl.PretrainedBackbone` has.
        source: the folder.
    """
    other = copy(backbone)
    remembered = {
        name
        for kind in type(backbone).__mro__
        for name, value in vars(kind).items()
        if isinstance(value, cached_property)
    }
    other.__dict__ = {name: value for name, value in other.__dict__.items() if name not in remembered}
    other.source, other.commit = source, source.commit
    return other

"""Loading a backbone that somebody registered, with what goes wrong pinned on whoever registered it."""

from __future__ import annotations

from hftl.backbones.protocol import Backbone
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

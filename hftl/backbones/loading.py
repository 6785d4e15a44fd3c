"""Backbones that somebody registered, loaded, with what goes wrong pinned on whoever registered them."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import Any

from hftl.backbones.protocol import Backbone, at_depth
from hftl.backbones.source import Source
from hftl.errors import BackboneError, HftlError, HubError, PluginError
from hftl.hub.client import explain, is_outage
from hftl.methods import Bits, Pooling
from hftl.plugins.manager import stdout_as_stderr
from hftl.plugins.registry import backbone_claims
from hftl.plugins.spec import BackboneOptions, BackboneSpec
from hftl.wording import named_error

# Of the protocol: the annotated ones, and its methods and properties.
ATTRIBUTES = sorted({*Backbone.__annotations__, *(name for name in vars(Backbone) if not name.startswith("_"))})


def load_backbone(
    spec: BackboneSpec,
    options: BackboneOptions,
    depth: int | None = None,
    pooling: Pooling = "native",
    *,
    trains_body: bool = False,
    precision: str = "no",
    quantize: Bits | None = None,
) -> Backbone:
    """Load a backbone, and pin what goes wrong inside a plugin on that plugin.

    Args:
        spec: which.
        options: how.
        depth: its first blocks only; None for all.
        pooling: what a head reads.
        trains_body: whether more than a head is trained, which takes a model that pools so itself; a head alone on the
            tokens of texts reads them of the classification class's own pass.
        precision: of the frozen pass, ``"no"`` for float32, ``"bf16"`` or ``"fp16"``: a model of texts has its weights
            read in it. Models of pictures stay in float32, and compute under autocast.
        quantize: read the linear layers of a model of texts in so few bits.

    Raises:
        BackboneError: the model cannot be found or used, or not at that depth.
        HubError: the Hub fails.
        PluginError: the plugin's loader raised, or returned something that is no backbone.
        RecipeError: it has fewer blocks.
    """
    try:
        with stdout_as_stderr():
            backbone = spec.load(options)
    except HftlError:
        raise
    except (Exception, SystemExit) as error:
        if why := explain(error, spec.name, "model", f"give a local folder, or {spec.plugin}'s documentation may help"):
            # The Hub's client raised it in the plugin, which is not to blame.
            raise (HubError if is_outage(error) else BackboneError)(f"backbone {spec.name!r} {why}") from error
        if spec.plugin == "hftl":
            raise BackboneError(f"backbone {spec.name!r} cannot be loaded: {named_error(error)}") from error
        raise PluginError(f"plugin {spec.plugin!r} could not load {spec.name!r}: {named_error(error)}") from error
    missing = missing_attributes(backbone)
    if missing:
        # Of something else altogether a list of all that it lacks would say little.
        lacks = f": it lacks {', '.join(missing)}" if len(missing) < len(ATTRIBUTES) // 2 else ""
        raise PluginError(
            f"plugin {spec.plugin!r} loads {spec.name!r} as a {type(backbone).__name__}, "
            f"which is no hftl.Backbone{lacks}"
        )
    if backbone.commit is None and spec.name in backbone_claims():
        # Where a package keeps its files says nothing to anybody else; its registered name can be asked for again.
        backbone.name = spec.name
    if pooling != "native":
        backbone = _pooled(backbone, pooling, trains_body)
    backbone = in_precision(backbone, precision, quantize, trains_body=trains_body)
    return backbone if depth is None else at_depth(backbone, depth)


def in_precision(backbone: Backbone, precision: str, quantize: Bits | None, *, trains_body: bool) -> Backbone:
    """The backbone with its weights read in fewer bits, where it is one of texts; else as it is.

    Raises:
        BackboneError: it is to be quantised and is none of texts, or what that takes is not here.
    """
    from hftl.backbones.precision import DTYPES
    from hftl.backbones.quantized import check_quantizer
    from hftl.backbones.text import TextBackbone

    if quantize:
        check_quantizer(quantize, trains_body=trains_body)
        if not isinstance(backbone, TextBackbone):
            raise BackboneError(f"quantize={quantize!r}: {backbone.name} is no model of texts: leave it out")
    return backbone.in_dtype(DTYPES[precision], quantize) if isinstance(backbone, TextBackbone) else backbone


def as_published(backbone: Backbone) -> Backbone:
    """The backbone with its weights read in the dtype that its configuration names, as transformers does by itself.

    Only where it is one of texts, and that dtype has 16 bits.
    """
    from hftl.backbones.precision import HALVES
    from hftl.backbones.text import TextBackbone

    stated = getattr(backbone.base_config, "dtype", None) if isinstance(backbone, TextBackbone) else None
    return backbone.in_dtype(stated) if isinstance(backbone, TextBackbone) and stated in HALVES else backbone


def _pooled(backbone: Backbone, pooling: Pooling, trains_body: bool) -> Backbone:
    """The base model of a backbone, pooled, in place of its classification class.

    Raises:
        BackboneError: it is a plugin's, whose class alone knows what its features are.
    """
    # Brought only here: they bring transformers.
    from hftl.backbones.bare import Bare, BareImageBackbone, BareTextBackbone
    from hftl.backbones.sentence import POOLINGS
    from hftl.backbones.text import TextBackbone
    from hftl.backbones.vision import ImageBackbone

    if backbone.wants == "text" and pooling in POOLINGS and not trains_body and not isinstance(backbone, Bare):
        # Its tokens are pooled beside what its own head reads, from one pass of the classification class.
        return backbone
    made: BareImageBackbone | BareTextBackbone
    if isinstance(backbone, ImageBackbone) and type(backbone) in (ImageBackbone, BareImageBackbone):
        made = BareImageBackbone(backbone.source, pooling)
    elif isinstance(backbone, TextBackbone) and type(backbone) in (TextBackbone, BareTextBackbone):
        made = BareTextBackbone(backbone.source, backbone.max_length, pooling)
    else:
        raise BackboneError(
            f"pooling={pooling!r}: {backbone.name} is a {type(backbone).__name__}, which pools by itself"
        )
    made.name = backbone.name
    # Said now, not when the first row is read.
    assert made.pooling
    return made


def for_words(backbone: Backbone) -> Backbone:
    """The same checkpoint as a model that gives each word of a sentence a label.

    Raises:
        BackboneError: it reads no texts, it is a plugin's or quantised, or transformers has no such class for it.
    """
    # Brought only here: they bring torch and transformers.
    from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

    from hftl.backbones.bare import BareTextBackbone
    from hftl.backbones.text import TextBackbone
    from hftl.backbones.words import WordBackbone

    if isinstance(backbone, WordBackbone):
        return backbone
    if not isinstance(backbone, TextBackbone) or type(backbone) not in (TextBackbone, BareTextBackbone):
        raise BackboneError(
            f"{backbone.name} is a {type(backbone).__name__}, which gives words no labels: take a model of texts that "
            "transformers loads"
        )
    kind = type(backbone.base_config)
    if kind not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise BackboneError(
            f"{backbone.name}: transformers has no token classification for {kind.__name__.removesuffix('Config')}: "
            "take another backbone for tagged words"
        )
    if backbone.quantize:
        raise BackboneError(f"quantize={backbone.quantize!r}: words get no labels of quantised weights: leave it out")
    # In float32, under autocast where less is asked for.
    made = WordBackbone(backbone.source, backbone.max_length)
    made.name = backbone.name
    return made.at_depth(backbone.shortened.depth) if backbone.shortened else made


def missing_attributes(backbone: object) -> list[str]:
    """What hftl asks of a backbone and this object does not answer; by name, so that its author knows what to write."""
    return [name for name in ATTRIBUTES if not hasattr(backbone, name)]


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

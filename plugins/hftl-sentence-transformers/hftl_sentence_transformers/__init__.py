"""Any sentence-transformers model as a backbone: ``st:`` before a Hub id or a folder."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import hftl

if TYPE_CHECKING:
    from hftl import Backbone, BackboneOptions, BackboneSpec

PREFIX = "st:"


@hftl.hookimpl
def hftl_resolve_backbone(ref: str) -> BackboneSpec | None:
    """Claim ``st:user/name[@revision]`` and ``st:FOLDER``."""
    if not ref.startswith(PREFIX):
        return None
    return hftl.BackboneSpec(ref, "text", partial(load, ref.removeprefix(PREFIX)))


def load(ref: str, options: BackboneOptions) -> Backbone:
    """The model of a Hub repository or a folder; brings torch.

    Raises:
        BackboneError: there is none, or it is of a kind that cannot be used.
    """
    from hftl_sentence_transformers.backbone import SentenceBackbone
    from hftl_sentence_transformers.folder import fetched

    return SentenceBackbone(fetched(ref, offline=options.offline), options.max_length)

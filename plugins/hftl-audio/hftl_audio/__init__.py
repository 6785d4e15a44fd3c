"""Sounds as a modality of hftl: models of transformers for audio classification, of waveforms or spectrograms."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hftl

if TYPE_CHECKING:
    from hftl import Backbone, BackboneOptions, BackboneSpec

FAMILIES = {
    "audio-spectrogram-transformer",
    "data2vec-audio",
    "hubert",
    "sew",
    "sew-d",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
}
KNOWN = [
    ("MIT/ast-finetuned-audioset-10-10-0.4593", 86_592_015, "bsd-3-clause", "AST, AudioSet"),
    ("MIT/ast-finetuned-speech-commands-v2", 85_446_691, "bsd-3-clause", "AST, Speech Commands"),
]


@hftl.hookimpl
def hftl_register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Register models of the Hub that are known to serve well."""
    for name, parameters, licence, description in KNOWN:
        register(hftl.BackboneSpec(name, "audio", partial(load, name), description, parameters, licence))


@hftl.hookimpl
def hftl_resolve_backbone(ref: str) -> BackboneSpec | None:
    """Claim ``audio:`` before a Hub id or a folder, and folders that hold an audio model."""
    if ref.startswith("audio:"):
        return hftl.BackboneSpec(ref, "audio", partial(load, ref.removeprefix("audio:")))
    return hftl.BackboneSpec(ref, "audio", partial(load, ref)) if _holds_audio_model(Path(ref).expanduser()) else None


def load(ref: str, options: BackboneOptions) -> Backbone:
    """The model of a Hub repository or a folder; brings torch."""
    from hftl_audio.backbone import AudioBackbone

    return AudioBackbone(hftl.Source.of(ref, offline=options.offline))


def _holds_audio_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in FAMILIES

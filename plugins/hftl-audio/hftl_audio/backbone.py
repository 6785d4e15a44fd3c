"""Audio classification models of transformers with their feature extractors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

import hftl
from hftl_audio.waves import VERSION, read_wave

PROBE_SAMPLES = (6_000, 9_000, 7_500, 12_000)


class AudioBackbone(hftl.PretrainedBackbone):
    """An audio classification model.

    Spectrogram models (AST) see every sound at one length. Waveform models (wav2vec2 and its kin) are padded under an
    attention mask where their feature extractor gives one; without it padding would change features, so sounds must
    then be equally long.
    """

    modality = "audio"
    wants = "file"
    suffixes = frozenset({".wav"})
    pipeline_tag = "audio-classification"
    auto_class = AutoModelForAudioClassification

    @cached_property
    def extractor(self) -> Any:
        """The checkpoint's feature extractor.

        Raises:
            BackboneError: there is none.
        """
        try:
            return AutoFeatureExtractor.from_pretrained(
                self.source.folder, trust_remote_code=False, local_files_only=True
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            why = " ".join(str(error).split())[:200]
            raise hftl.BackboneError(f"{self.name} has no usable feature extractor: {why}") from error

    def processor_identity(self) -> dict[str, Any]:
        """Every setting of the feature extractor, and what turns files into samples and spectrograms."""
        settings = json.loads(self.extractor.to_json_string())
        # Computed from the settings, and long.
        settings = {name: value for name, value in settings.items() if name not in ("mel_filters", "window")}
        # AST's filter bank comes from torchaudio where that is installed; the last digits differ.
        return settings | {"waves": VERSION, "torchaudio": find_spec("torchaudio") is not None}

    def encode(self, rows: Sequence[bytes], names: Sequence[str]) -> list[hftl.Encoded]:
        """Decode and preprocess sounds.

        Raises:
            BadRowError: a sound cannot be decoded, or is too short for the model.
        """
        rate = self.extractor.sampling_rate
        return [self._encode(read_wave(row, name, rate), name) for row, name in zip(rows, names, strict=True)]

    def collate(self, rows: Sequence[hftl.Encoded]) -> dict[str, Tensor]:
        """Stack spectrograms; pad waveforms on the right, under a mask.

        Raises:
            BackboneError: waveforms differ in length and the model knows no mask.
        """
        (name,) = {name for row in rows for name in row.inputs}
        values = [row.inputs[name] for row in rows]
        if not self.extractor.return_attention_mask:
            if len({value.shape for value in values}) > 1:
                raise hftl.BackboneError(
                    f"{self.name} knows no attention mask, so sounds of different lengths cannot share a batch: cut "
                    "them to one length, or take a model whose feature extractor has return_attention_mask"
                )
            return {name: torch.stack(values)}
        lengths = torch.tensor([len(value) for value in values])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return {name: nn.utils.rnn.pad_sequence(values, batch_first=True), "attention_mask": mask.long()}

    def probes(self) -> list[dict[str, Tensor]]:
        """Two batches of noise, of several lengths where the model can tell them apart."""
        noise = np.random.default_rng(0)
        ragged = self.extractor.return_attention_mask
        lengths = PROBE_SAMPLES if ragged else [PROBE_SAMPLES[0]] * 4
        rows = [self._encode(noise.normal(0, 0.1, length).astype(np.float32), "probe") for length in lengths]
        return [self.collate(rows[i::2]) for i in range(2)]

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        """As for every model; what stands before the last layer is no part of the head where the checkpoint brings it.

        That is AST's normalisation (also where it is missing, because it is new then and does nothing), and the
        projector of a waveform model that was fine-tuned before.
        """
        model, head = super().build(config)
        brought = {name for name in self.weight_files() if name.startswith("projector.")}
        return model, {name for name in head if name not in brought and ".layernorm." not in name}

    def save_processor(self, folder: Path) -> None:
        """Write ``preprocessor_config.json``."""
        self.extractor.save_pretrained(folder)

    def _encode(self, samples: np.ndarray, name: str) -> hftl.Encoded:
        try:
            made = self.extractor(samples, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        except (ValueError, RuntimeError, IndexError) as error:
            why = " ".join(str(error).split())[:200]
            raise hftl.BadRowError(name, f"{len(samples):,} samples cannot be read by {self.name}: {why}") from error
        values = {key: value[0] for key, value in made.items() if key != "attention_mask"}
        cost = len(next(iter(values.values())))
        return hftl.Encoded(values, cost=cost)

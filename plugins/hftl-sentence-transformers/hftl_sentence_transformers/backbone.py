"""A sentence encoder with a linear layer on what its ``encode`` gives; exported, ``encode`` gives the logits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from typing_extensions import Self

import hftl
from hftl_sentence_transformers import folder as files

try:
    from sentence_transformers.sentence_transformer.modules import Dense
except ImportError:  # before 6
    from sentence_transformers.models import Dense

SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")


class SentenceClassifier(nn.Module):
    """A `SentenceTransformer` and a linear layer on its sentence embedding.

    Args:
        encoder: the encoder, all of its modules included.
        num_labels: outputs of the layer.
    """

    base_model_prefix = "encoder"

    def __init__(self, encoder: SentenceTransformer, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        # Renamed in 6; the old name then warns.
        width = getattr(encoder, "get_embedding_dimension", None) or encoder.get_sentence_embedding_dimension
        self.classifier = nn.Linear(width() or 0, num_labels)

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits (n, num_labels) of tokens (n, t)."""
        return SequenceClassifierOutput(logits=self.classifier(self.encoder(dict(inputs))["sentence_embedding"]))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a sentence-transformers folder whose last module is the linear layer."""
        weight, bias = self.classifier.weight.detach(), self.classifier.bias.detach()
        last = Dense(
            weight.shape[1], weight.shape[0], activation_function=nn.Identity(), init_weight=weight, init_bias=bias
        )
        prompts = {"prompts": self.encoder.prompts, "default_prompt_name": self.encoder.default_prompt_name}
        whole = SentenceTransformer(modules=[*self.encoder, last], device="cpu", **prompts)
        whole.save_pretrained(str(folder), create_model_card=False)


class SentenceBackbone(hftl.TextBackbone):
    """A sentence-transformers model.

    Args:
        source: where its files are.
        max_length: tokens kept of a text; None for what the model states.
    """

    library = "sentence-transformers"

    def __init__(self, source: hftl.Source, max_length: int | None = None) -> None:
        stated = files.read_json(source, SETTINGS[0]).get("max_seq_length")
        limits = [limit for limit in (max_length, stated) if limit]
        super().__init__(source, min(limits) if limits else None)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with the lower-casing that sentence-transformers adds where the folder asks for it."""
        tokenizer = super().tokenizer
        if files.read_json(self.source, SETTINGS[0]).get("do_lower_case"):
            backend = tokenizer.backend_tokenizer
            backend.normalizer = Normalizers([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
        return tokenizer

    def identity(self) -> dict[str, Any]:
        """As for every text model, and every module with its settings, and the prompt."""
        modules = {"modules": files.modules(self.source), "settings": files.settings(self.source)}
        return super().identity() | modules | {"prompt": files.default_prompt(self.source)}

    def weight_files(self) -> Mapping[str, Path]:
        """The tensors of all modules; those of later modules by path and name."""
        tensors = dict(super().weight_files())
        for module in files.modules(self.source)[1:]:
            folder = self.source.folder / module["path"]
            if (folder / "model.safetensors").exists():
                own = hftl.Source(self.source.id, folder).weight_files()
                tensors |= {f"{module['path']}/{name}": file for name, file in own.items()}
        return tensors

    def encode(self, rows: Sequence[tuple[str, ...]], names: Sequence[str]) -> list[hftl.Encoded]:
        """Tokenise rows with the model's default prompt before them."""
        prompt = files.default_prompt(self.source)
        return super().encode([(prompt + row[0], *row[1:]) for row in rows], names)

    def at_depth(self, depth: int) -> Self:
        """Refuse: the modules after the transformer were trained for its last block."""
        raise hftl.BackboneError(
            f"depth={depth}: {self.name} is taken whole, with its modules after the transformer: leave depth out, or "
            "give the folder of a transformer alone"
        )

    def build(self, config: Any) -> tuple[nn.Module, set[str]]:
        """The encoder with its weights and a linear layer, in eval mode, float32; and the layer's parameter names.

        Raises:
            BackboneError: the folder cannot be loaded.
        """
        files.check(self.source)
        self.weight_files()
        try:
            encoder = SentenceTransformer(
                str(self.source.folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise hftl.BackboneError(f"{self.name} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
        encoder.max_seq_length = self.max_length
        model = SentenceClassifier(encoder, config.num_labels).float().eval()
        return model, {"classifier.weight", "classifier.bias"}

    def save_processor(self, folder: Path) -> None:
        """Write the tokenizer; give the configuration back the class that the folder's weights are of."""
        super().save_processor(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["architectures"] = self.base_config.architectures
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

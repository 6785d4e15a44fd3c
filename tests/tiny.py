"""Tiny random models of many architectures, as a user's checkpoint would hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)
from transformers.modeling_utils import PreTrainedModel

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT_VOCABULARY = 120

TEXT: dict[str, dict[str, Any]] = {
    "bert": WIDE,
    "roberta": WIDE,
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "electra": WIDE | {"embedding_size": 16},
    "mpnet": WIDE,
    "deberta-v2": WIDE
    | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "pooler_hidden_size": 32,
    },
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    "modernbert": WIDE | {"global_attn_every_n_layers": 2},
    "modernbert-mean": WIDE | {"global_attn_every_n_layers": 2, "classifier_pooling": "mean"},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": WIDE | {"num_key_value_heads": 2},
    "qwen3": WIDE | {"num_key_value_heads": 2, "head_dim": 16},
    "gemma": WIDE | {"num_key_value_heads": 1, "head_dim": 16},
    "gemma3_text": WIDE | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8},
    "mistral": WIDE | {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
}

PATCHES = WIDE | {"image_size": 32, "patch_size": 8}
IMAGE: dict[str, dict[str, Any]] = {
    "vit": PATCHES,
    "deit": PATCHES,
    "deit-distilled": PATCHES,
    "dinov2": PATCHES,
    "beit": PATCHES,
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "mobilenet_v2": {"depth_multiplier": 0.1, "image_size": 32},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 24],
    },
    "efficientnet": {"image_size": 32, "width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256},
    "clip": {
        "vision_config": PATCHES,
        "text_config": WIDE | {"vocab_size": TEXT_VOCABULARY},
        "projection_dim": 16,
    },
    "siglip": {"vision_config": PATCHES, "text_config": WIDE | {"vocab_size": TEXT_VOCABULARY}},
}
ARCHITECTURES = {"deit-distilled": ["DeiTForImageClassificationWithTeacher"]}


def config(name: str, num_labels: int = 3, **overrides: Any) -> Any:
    """A tiny configuration of one of the architectures above."""
    model_type = {"deit-distilled": "deit", "modernbert-mean": "modernbert"}.get(name, name)
    options = dict(TEXT.get(name) or IMAGE[name])
    if name in TEXT:
        options |= {"vocab_size": TEXT_VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        if name not in ("xlnet", "gpt2"):
            options["max_position_embeddings"] = 64
        if name in ("modernbert", "modernbert-mean"):
            options |= {"cls_token_id": 1, "sep_token_id": 2}
    made = AutoConfig.for_model(model_type, **options | overrides)
    made.num_labels = num_labels
    made.architectures = ARCHITECTURES.get(name, [])
    return made


def model(name: str, num_labels: int = 3, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny random classification model in eval mode, its weights drawn with ``seed``."""
    torch.manual_seed(seed)
    auto = AutoModelForSequenceClassification if name in TEXT else AutoModelForImageClassification
    made = auto.from_config(config(name, num_labels, **overrides)).eval()
    with torch.no_grad():
        # The classes' own initial values (0.02) make every row look alike; spread them.
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return made


def save(name: str, folder: Path, *, seed: int = 0, head: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """Write a tiny checkpoint with its tokenizer or image processor.

    Args:
        name: one of the architectures above.
        folder: where to write.
        seed: of the weights.
        head: whether the checkpoint brings a classification head (of 7 labels); else it is one of the base model.
        dtype: of the weights.
    """
    if head:
        made = model(name, num_labels=7, seed=seed)
    else:
        torch.manual_seed(seed)
        made = AutoModel.from_config(config(name))
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5)
    made.to(dtype).save_pretrained(folder)
    if name in TEXT:
        # This family reads its last token, so that its tokenizers pad on the left.
        tokenizer("left" if name == "xlnet" else "right").save_pretrained(folder)
    else:
        size = getattr(made.config, "image_size", None) or getattr(
            getattr(made.config, "vision_config", None), "image_size", 32
        )
        ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def save_causal(
    name: str, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "20KB", **of_tokenizer: Any
) -> Path:
    """A causal checkpoint in shards, its lm_head tied, and a tokenizer that has no padding token and adds no end."""
    torch.manual_seed(0)
    made = config(name)
    made.pad_token_id, made.tie_word_embeddings = None, True
    causal = AutoModelForCausalLM.from_config(made)
    with torch.no_grad():
        for parameter in causal.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    causal.to(dtype).save_pretrained(folder, max_shard_size=shard)
    words = tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 1)]
    )
    words.save_pretrained(folder)
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {key: value for key, value in (stated | {"pad_token": None} | of_tokenizer).items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    return folder


# fmt: off
WORDS = [
    "a", "the", "one", "two", "red", "blue", "cat", "dog", "bird", "sat", "ran", "flew", "over", "under", "mat", "rug",
    "tree", "hill", "what", "where", "who", "is", "was", "not", "very",
]
# fmt: on


def tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A word tokenizer with the special tokens whose ids the configurations above name."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        bos_token="[CLS]",
        cls_token="[CLS]",
        eos_token="[SEP]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=32,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )

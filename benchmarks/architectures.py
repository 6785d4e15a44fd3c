"""Every classification architecture of transformers, tiny and random, through features, head, export and plain reload.

    python benchmarks/architectures.py [--kind text|image|words] [--method head|lora] [TYPE…]

For each model type a small random checkpoint of its base model is written, `hftl.run` trains a head on stored features
and exports it, and transformers' own classes load the folder: the probabilities of every test row, alone and in a mixed
batch, are compared with the run's. A model is *exact*, or *refused* in one line; *wrong* and *traceback* are faults of
hftl, and the command then fails. Where rows have to run in batches of equal length, such batches are compared. Of
sentences every word is compared, at its first token.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import random
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from machine import tell_machine
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ImageGPTImageProcessorPil,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.utils import logging

import hftl
from hftl.errors import HftlError

AUTO = {
    "image": AutoModelForImageClassification,
    "text": AutoModelForSequenceClassification,
    "words": AutoModelForTokenClassification,
}
TYPES = {
    "image": {kind.model_type: kind for kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING},
    "text": {kind.model_type: kind for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING},
    "words": {kind.model_type: kind for kind in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING},
}
TOKENS, TEXT_LENGTH, CLASSES = 120, 40, ["circle", "line", "dot"]


def _same(names: str, value: int) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


# What sizes are called in configurations, and what they become.
SMALL = (
    _same("hidden_size d_model n_embd dim emb_dim embed_dim embedding_size projection_dim word_embed_proj_dim", 32)
    | _same("pooler_hidden_size entity_emb_size n_embed", 32)
    | _same("num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers", 2)
    | _same("num_encoder_layers num_attention_heads n_head n_heads num_heads encoder_attention_heads", 2)
    | _same("decoder_attention_heads num_key_value_heads num_kv_heads num_experts_per_tok", 2)
    | _same("intermediate_size d_inner hidden_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff dff ffn_dim", 48)
    | _same("moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size", 48)
    | _same("head_dim d_kv d_head kv_channels attention_head_dim", 16)
    | _same("max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length", 64)
    | _same("num_experts num_local_experts n_routed_experts", 4)
    | {"vocab_size": TOKENS, "image_size": 32, "patch_size": 8}
)
STAGES = {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16}
LATENT = {"head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "qk_head_dim": 16, "v_head_dim": 16}
LATENT |= {"q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
# What the names above do not say.
SPECIAL: dict[str, dict[str, Any]] = {
    "donut-swin": STAGES | {"patch_size": 4, "window_size": 4},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "siglip2": {"vision_config": {**_same("hidden_size intermediate_size", 32), "num_hidden_layers": 2,
                                  "num_attention_heads": 2, "num_patches": 16, "patch_size": 8}},
    "imagegpt": {"n_positions": 64, "vocab_size": 17},
    "swin": STAGES | {"patch_size": 4, "window_size": 4},
    "swinv2": STAGES | {"patch_size": 4, "window_size": 4, "pretrained_window_sizes": [0, 0]},
    "focalnet": {"depths": [1, 1], "hidden_sizes": [16, 32], "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "hiera": {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16, "patch_size": [7, 7], "num_query_pool": 1,
              "image_size": [64, 64], "masked_unit_attention": [True, False]},
    "efficientnet": {"width_coefficient": 0.2, "depth_coefficient": 0.2, "hidden_dim": 256},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.1},
    "levit": {"image_size": 64, "patch_size": 16, "hidden_sizes": [16, 32, 48], "num_attention_heads": [1, 2, 3],
              "depths": [1, 1, 1], "key_dim": [8, 8, 8], "mlp_ratio": [2, 2, 2], "attention_ratio": [2, 2, 2]},
    "mobilevit": {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 24]},
    "mobilevitv2": {"image_size": 256, "width_multiplier": 0.25},
    "swiftformer": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    "pvt_v2": {"image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
               "num_attention_heads": [1, 2, 2, 4]},
    "textnet": {"image_size": 64},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 1,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_hidden_layers": None, "d_model": 32,
               "n_head": 2, "d_head": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16],
                 "is_decoder": False, "num_buckets": 2, "feed_forward_size": 48, "attention_head_size": 16,
                 "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "num_hidden_layers": None},
    "xlnet": {"max_position_embeddings": None},
    "esm": {"vocab_size": TOKENS}, "esmc": {},
    "falcon": {"head_dim": None},
    "nemotron": {"num_key_value_heads": 2},
    "hunyuan_v1_dense": {"head_dim": 16}, "hunyuan_v1_moe": {"head_dim": 16},
    "zamba": {"num_hidden_layers": 3, "attn_layer_period": 2, "attn_layer_offset": 1},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1],
               "num_mem_blocks": 1, "mamba_ngroups": 1, "n_mamba_heads": 4, "mamba_d_state": 8},
    "gptj": {"rotary_dim": 8}, "t5": {"decoder_start_token_id": 0}, "xmod": {"default_language": "en_XX"},
    "layoutlmv3": {"coordinate_size": 5, "shape_size": 6}, "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "ministral": {"head_dim": 16}, "ministral3": {"head_dim": 16}, "nystromformer": {"num_landmarks": 64},
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "mistral4"), LATENT),
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "qwen3_5_text": HYBRID, "qwen3_next": HYBRID,
}  # fmt: skip


def shrunk(config: Any) -> dict[str, Any]:
    """The sizes that a configuration has, all small."""
    sizes = {
        name: value
        for name, value in SMALL.items()
        if isinstance(getattr(config, name, None), int) or (hasattr(config, name) and name == "num_key_value_heads")
    }
    for name in type(config).sub_configs:
        inner = getattr(config, name, None)
        if hasattr(inner, "to_dict"):
            sizes[name] = shrunk(inner)
    return sizes


def configuration(modality: str, model_type: str) -> Any:
    kind = TYPES[modality][model_type]
    options = shrunk(kind()) | SPECIAL.get(model_type, {})
    if modality != "image":
        options |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return kind(**{name: value for name, value in options.items() if value is not None})


def checkpoint(modality: str, model_type: str, folder: Path) -> None:
    """Write a random checkpoint: the base model where there is one, else a classifier of seven labels."""
    config = configuration(modality, model_type)
    # Where a type has several base classes, transformers looks here, in vain in a configuration that was just made.
    config.architectures = []
    torch.manual_seed(0)
    try:
        model = AutoModel.from_config(config)
    except ValueError:
        config.num_labels = 7
        model = AUTO[modality].from_config(config)
    normalised = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    with torch.no_grad():
        for parameter in model.parameters():
            # The classes' own initial values make every row look alike.
            if parameter.dim() > 1 and not normalised:
                parameter.mul_(4)
    size = picture_size(config)
    if normalised and modality == "image":
        # Statistics of rows seen, as a pretrained model has; without them numbers vanish or explode.
        model.train()
        with torch.no_grad():
            for _ in range(40):
                model(torch.randn(6, 3, 1, 1) + 0.3 * torch.randn(6, 3, *size))
    model.save_pretrained(folder)
    if modality != "image":
        tokenizer(AUTO[modality].from_config(config), "left" if model_type == "xlnet" else "right").save_pretrained(
            folder
        )
    else:
        processor(model_type, size).save_pretrained(folder)


def picture_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or getattr(getattr(config, "vision_config", None), "image_size", 32)
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)


def processor(model_type: str, size: tuple[int, int]) -> Any:
    if model_type == "imagegpt":
        clusters = np.random.default_rng(0).uniform(-1, 1, (16, 3)).tolist()
        return ImageGPTImageProcessorPil(clusters=clusters, size={"height": 8, "width": 8})
    if model_type == "siglip2":
        return Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    return ViTImageProcessorPil(size={"height": size[0], "width": size[1]})


WORDS = [f"w{i}" for i in range(80)]


def tokenizer(model: Any, padding_side: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    accepted = inspect.signature(type(model).forward).parameters
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        bos_token="[CLS]", eos_token="[SEP]", model_max_length=TEXT_LENGTH, padding_side=padding_side,
        model_input_names=["input_ids", *(["attention_mask"] if "attention_mask" in accepted else [])],
    )  # fmt: skip


def texts(folder: Path, rows: int = 96) -> Path:
    """Two tables of texts of 2 to 45 words, whose class is that of their first word."""
    draw = random.Random(0)
    for split, count in (("train", rows), ("test", 24)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            for i in range(count):
                words = [WORDS[i % 3], *draw.choices(WORDS[3:], k=draw.choice([1, 2, 3, 3, 5, 8, 12, 44]))]
                table.writerow([" ".join(words), CLASSES[i % 3]])
    return folder


TAGS = ["O", "B-a", "I-a", "B-b"]


def sentences(folder: Path, rows: int = 48) -> Path:
    """Two tables of sentences of 2 to 36 words, and one that needs windows; a word's tag is that of the word alone."""
    draw = random.Random(0)
    for split, count in (("train", rows), ("test", 16)):
        with (folder / f"{split}.jsonl").open("w") as file:
            for i in range(count):
                words = draw.choices(WORDS, k=90 if i == 7 else draw.choice([2, 3, 3, 5, 8, 12, 36]))
                tags = [TAGS[int(word[1:]) % len(TAGS)] for word in words]
                file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")
    return folder


def pictures(folder: Path, rows: int = 48) -> Path:
    noise = np.random.default_rng(0)
    for split, count in (("train", rows), ("test", 12)):
        for i in range(count):
            pixels = noise.integers(0, 90, (40, 48, 3))
            pixels[..., i % 3] += 120
            file = folder / split / CLASSES[i % 3] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


@dataclass(frozen=True)
class Outcome:
    status: str
    detail: str = ""


def through_hftl(modality: str, model_type: str, data: Path, method: Any) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "model", Path(folder) / "run"
        try:
            checkpoint(modality, model_type, source)
        except Exception as error:
            return Outcome("not built", f"{type(error).__name__}: {' '.join(str(error).split())[:140]}")
        try:
            hftl.run(hftl.Recipe(backbone=str(source), data=str(data), method=method), out=out, quiet=True)
        except HftlError as error:
            if "\n" in str(error):
                return Outcome("traceback", f"more than one line: {error!r}")
            return Outcome("refused", f"{type(error).__name__}: {error}")
        except Exception as error:
            return Outcome("traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if not (out / "model").exists():
            return Outcome("refused", "only the adapter is written")
        try:
            gaps = compared_words(out, data) if modality == "words" else compared(modality, out, data)
        except OddTokenizerError as error:
            return Outcome("not built", str(error))
        except Exception as error:
            return Outcome("wrong", f"plain transformers: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    worst = max(gaps.values())
    said = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
    return Outcome("exact" if worst < 1e-3 else "wrong", said)


def compared(modality: str, out: Path, data: Path) -> dict[str, float]:
    """The largest difference of log-probabilities between the run and the plain model, rows alone and in batches."""
    table = pq.read_table(out / "predictions.parquet")
    ours = np.array(table["scores"].to_pylist())
    model = AUTO[modality].from_pretrained(out / "model").eval()
    if modality == "text":
        with (data / "test.csv").open() as file:
            rows: list[Any] = [row["text"] for row in csv.DictReader(file)]
        reads = AutoTokenizer.from_pretrained(out / "model")

        def batch(chosen: list[int]) -> Any:
            return reads([rows[i] for i in chosen], truncation=True, padding=True, return_tensors="pt")
    else:
        rows = [Image.open(data / name).convert("RGB") for name in table["row"].to_pylist()]
        reads = AutoImageProcessor.from_pretrained(out / "model")

        def batch(chosen: list[int]) -> Any:
            return reads(images=[rows[i] for i in chosen], return_tensors="pt")

    def gap(groups: list[list[int]]) -> float:
        worst = 0.0
        for group in groups:
            with torch.no_grad():
                theirs = model(**batch(group)).logits.log_softmax(-1).numpy()
            # Below a millionth, rounding decides.
            worst = max(worst, float(np.abs(theirs.clip(np.log(1e-6)) - np.log(ours[group].clip(1e-6))).max()))
        return worst

    everything = list(range(len(rows)))
    alone = gap([[i] for i in everything])
    padded = gap([everything[i : i + 8] for i in range(0, len(rows), 8)])
    if modality == "image" or padded < 1e-3:
        return {"alone": alone, "mixed": padded}
    lengths: dict[int, list[int]] = {}
    for i in everything:
        lengths.setdefault(len(reads(rows[i], truncation=True)["input_ids"]), []).append(i)
    # Padding changes this model's numbers, in plain transformers too: rows of one length are what can be batched.
    features = json.loads((out / "metrics.json").read_text())["features"]
    if not features.get("equal_lengths"):
        return {"alone": alone, "mixed": padded}
    return {"alone": alone, "equal lengths": gap(list(lengths.values()))}


class OddTokenizerError(Exception):
    """The type has a tokenizer class of its own, which does not read the one that is written here."""


def compared_words(out: Path, data: Path) -> dict[str, float]:
    """The largest difference of the words' log-probabilities, sentences alone and in batches; windows are left out."""
    ours = pq.read_table(out / "predictions.parquet")["scores"].to_pylist()
    rows = [json.loads(line)["tokens"] for line in (data / "test.jsonl").read_text().splitlines()]
    short = [i for i, row in enumerate(rows) if len(row) <= TEXT_LENGTH - 2]
    model = AutoModelForTokenClassification.from_pretrained(out / "model").eval()
    reads = AutoTokenizer.from_pretrained(out / "model")
    if not reads([WORDS[0]], is_split_into_words=True, add_special_tokens=False)["input_ids"]:
        raise OddTokenizerError("the tokenizer class of this type makes nothing of the words that are written here")

    def gap(groups: list[list[int]]) -> float:
        worst = 0.0
        for group in groups:
            batch = reads([rows[i] for i in group], is_split_into_words=True, padding=True, return_tensors="pt")
            with torch.no_grad():
                theirs = model(**batch).logits.log_softmax(-1).numpy()
            for place, i in enumerate(group):
                word_of = batch.word_ids(place)
                first = [word_of.index(word) for word in range(len(rows[i]))]
                mine = np.log(np.array(ours[i]).clip(1e-6))
                worst = max(worst, float(np.abs(theirs[place, first].clip(np.log(1e-6)) - mine).max()))
        return worst

    alone = gap([[i] for i in short])
    if json.loads((out / "metrics.json").read_text())["features"].get("equal_lengths"):
        lengths: dict[int, list[int]] = {}
        for i in short:
            lengths.setdefault(len(rows[i]), []).append(i)
        return {"alone": alone, "equal lengths": gap(list(lengths.values()))}
    return {"alone": alone, "mixed": gap([short[i : i + 8] for i in range(0, len(short), 8)])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all of them where none is given")
    parser.add_argument("--kind", choices=sorted(TYPES), action="append")
    parser.add_argument("--method", choices=["head", "lora"], default="head")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    method = (
        hftl.Head(folds=2, strengths=[1.0, 0.01], calibrate=False)
        if arguments.method == "head"
        else hftl.LoRA(r=2, epochs=1, lr=1e-2)
    )
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for modality in arguments.kind or sorted(TYPES):
            data = Path(folder) / modality
            data.mkdir()
            {"text": texts, "image": pictures, "words": sentences}[modality](data)
            for model_type in TYPES[modality]:
                if arguments.types and model_type not in arguments.types:
                    continue
                started = time.monotonic()
                outcome = through_hftl(modality, model_type, data, method)
                counts[outcome.status] += 1
                seconds = time.monotonic() - started
                print(f"{modality:6}{model_type:24}{outcome.status:11}{seconds:5.1f} s  {outcome.detail}", flush=True)
    print("  ".join(f"{status} {count}" for status, count in counts.most_common()))
    if counts["wrong"] or counts["traceback"]:
        raise SystemExit(1)


if __name__ == "__main__":
    tell_machine()
    main()

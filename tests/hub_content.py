"""What the tests' Hub holds: tiny random models and small data sets under the names that recipes use."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
from hub_server import Hub
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    BertTokenizerFast,
    BitImageProcessorPil,
    ViTImageProcessorPil,
)

VIT, FLOWERS = "google/vit-base-patch16-224-in21k", "nelorth/oxford-flowers"
DINOV2, BEANS = "facebook/dinov2-small", "AI-Lab-Makerere/beans"
CLIP = "openai/clip-vit-base-patch32"
DINOV3 = "facebook/dinov3-vits16-pretrain-lvd1689m"
LLAMA = "meta-llama/Llama-3.2-1B"
BERT, REVIEWS = "google-bert/bert-base-uncased", "someone/reviews"
WORDS = ["good", "bad", "film", "the", "a", "plot", "actor", "is", "was", "very"]


def add_usual(hub: Hub, folder: Path) -> None:
    """A ViT, a BERT, pictures of flowers and reviews."""
    add_vit(hub, folder / "vit")
    add_bert(hub, folder / "bert")
    add_flowers(hub, folder)
    add_reviews(hub)


def add_vit(hub: Hub, folder: Path, name: str = VIT, **options: Any) -> None:
    """A tiny ViT without a head, its image processor and a card with a licence."""
    tiny.model("vit").base_model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [vision]\n---\n# ViT\n")
    hub.add(name, folder, **options)


def add_dinov2(hub: Hub, folder: Path, name: str = DINOV2) -> None:
    """A tiny DINOv2 without a head, and the image processor of its kind."""
    tiny.model("dinov2").base_model.save_pretrained(folder)
    size = {"shortest_edge": 36}
    BitImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    hub.add(name, folder)


def add_dinov3(hub: Hub, folder: Path, name: str = DINOV3) -> None:
    """A tiny DINOv3, which has no classification class, and its image processor."""
    options = {**tiny.PATCHES, "num_register_tokens": 4}
    AutoModel.from_config(CONFIG_MAPPING["dinov3_vit"](**options)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    hub.add(name, folder)


def add_clip(hub: Hub, folder: Path, name: str = CLIP) -> None:
    """A tiny CLIP of both towers, its image processor and its tokenizer."""
    tiny.save("clip", folder)
    tiny.tokenizer().save_pretrained(folder)
    hub.add(name, folder)


def add_bert(hub: Hub, folder: Path, name: str = BERT, **options: Any) -> None:
    """A tiny BERT without a head, and its tokenizer."""
    tiny.model("bert").base_model.save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# BERT\n")
    hub.add(name, folder, **options)


def add_llama(hub: Hub, folder: Path, name: str = LLAMA) -> None:
    """A tiny Llama as a causal language model, in bfloat16, and a tokenizer without a padding token."""
    config = tiny.config("llama")
    config.pad_token_id = None
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    hub.add(name, folder)


def flower(kind: int, number: int) -> bytes:
    """A PNG of a kind's colour with noise."""
    noise = np.random.default_rng([kind, number])
    colour = np.array([[250, 40, 40], [40, 250, 40], [40, 40, 250], [230, 230, 40]])[kind]
    pixels = np.clip(colour + noise.normal(0, 40, (40, 30, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def flower_table(split: str, rows: int) -> datasets.Dataset:
    """Images of four kinds, as the Hub's image sets are: encoded bytes and class labels."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["rose", "fern", "iris", "sun flower"])}
    )
    first = 1000 if split == "test" else 0
    images = [{"bytes": flower(i % 4, first + i), "path": None} for i in range(rows)]
    return datasets.Dataset.from_dict({"image": images, "label": [i % 4 for i in range(rows)]}, features)


def add_beans(hub: Hub, folder: Path, name: str = BEANS) -> None:
    """Leaves with the columns of the real set, the author's paths among them, in three splits."""
    kinds = ["angular_leaf_spot", "bean_rust", "healthy"]
    features = {
        "image_file_path": datasets.Value("string"),
        "image": datasets.Image(),
        "labels": datasets.ClassLabel(names=kinds),
    }
    files = {}
    for number, (split, rows) in enumerate({"train": 30, "validation": 12, "test": 12}.items()):
        columns = {
            "image_file_path": [f"/home/author/{split}/{kinds[i % 3]}/{i}.jpg" for i in range(rows)],
            "image": [{"bytes": flower(i % 3, 1000 * number + i), "path": None} for i in range(rows)],
            "labels": [i % 3 for i in range(rows)],
        }
        path = folder / f"beans-{split}.parquet"
        datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)
        files[f"data/{split}-00000-of-00001.parquet"] = path.read_bytes()
    hub.add(name, files, type="datasets")


def add_flowers(hub: Hub, folder: Path, name: str = FLOWERS, rows: int = 48, **options: Any) -> None:
    """A parquet data set of images with train and test splits."""
    files = {"README.md": b"---\nlicense: cc0-1.0\n---\n# Flowers\n"}
    for split, count in (("train", rows), ("test", 20)):
        path = folder / f"{split}.parquet"
        flower_table(split, count).to_parquet(path)
        files[f"data/{split}-00000-of-00001.parquet"] = path.read_bytes()
    hub.add(name, files, type="datasets", **options)


def add_table(hub: Hub, name: str, columns: dict[str, list[Any]]) -> None:
    """A parquet data set that has the same rows in two splits."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    hub.add(name, {f"data/{split}.parquet": file.getvalue() for split in ("train", "test")}, type="datasets")


def sentences(count: int) -> list[str]:
    """Different texts of known words."""
    random = np.random.default_rng(1)
    return [" ".join(random.choice(WORDS, 5)) for _ in range(count)]


def add_reviews(hub: Hub, name: str = REVIEWS, rows: int = 60, **options: Any) -> None:
    """A csv data set of texts with a train split only."""
    random = np.random.default_rng(0)
    lines = ["text,label"]
    for i in range(rows):
        kind = "good" if i % 2 else "bad"
        words = [*random.choice(WORDS[2:], 4), kind]
        lines.append(f"{' '.join(random.permutation(words))},{kind}")
    hub.add(name, {"train.csv": "\n".join(lines).encode()}, type="datasets", **options)

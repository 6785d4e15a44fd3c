"""Frozen image features: the whole extraction beside its two halves, each run alone.

    python benchmarks/extract_images.py [--images 256] [--threads 2] [--photos FOLDER]

ViT-S/16 at 224 pixels (random weights: the time is the same), JPEGs of 500×375 (made of the photos given, else of
noise with structure). On a CPU the two halves share the cores, so the whole can at best equal their sum; on an
accelerator, the slower half.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import transformers
from machine import tell_machine
from PIL import Image, ImageFilter

from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.protocol import Target
from hftl.data import Files
from hftl.decoding import Decoder
from hftl.frozen.extract import DECODED_AHEAD, ConcatRows, extract
from hftl.frozen.view import View, open_space
from hftl.parallel import Process
from hftl.plugins.spec import BackboneOptions
from hftl.store.stat_index import digest_files
from hftl.store.store import FeatureStore

BATCHES = (4, 8, 16, 32, 64)


def write_model(folder: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=12
    )
    transformers.ViTModel(config).save_pretrained(folder)
    transformers.ViTImageProcessorPil().save_pretrained(folder)


def jpegs(count: int, photos: Path | None) -> list[bytes]:
    found = sorted(photos.rglob("*.jpg"))[:count] if photos else []
    rng = np.random.default_rng(0)
    encoded = []
    for i in range(count):
        if found:
            image = Image.open(found[i % len(found)]).convert("RGB").resize((500, 375))
        else:
            noise = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
            image = noise.filter(ImageFilter.GaussianBlur(2))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, comment=str(i).encode())
        encoded.append(file.getvalue())
    return encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"])
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[arguments.precision]
    encoded = jpegs(arguments.images, arguments.photos)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        spec = hftl_resolve_backbone(str(Path(folder) / "model"))
        assert spec is not None
        backbone = spec.load(BackboneOptions())
        config = backbone.config("single_label", ["a", "b"])
        rows = Files(pa.chunked_array([pa.array(encoded)]))

        # On an accelerator the slower half is decoding, and processes are what decodes fastest on many cores.
        decoder = Decoder(backbone, 0 if device.type == "cpu" else os.cpu_count())
        decoder([encoded[0]], [""])
        while device.type != "cpu" and not decoder.is_ready and decoder.refusal is None:
            time.sleep(0.05)
        started = time.perf_counter()
        ready = list(decoder.ahead(lambda row: decoder([row], [""])[0], encoded, os.cpu_count() or 1, DECODED_AHEAD))
        decode = time.perf_counter() - started
        decoder.close()

        model, _ = backbone.build(config)
        model.to(device)
        best = float("inf")
        for size in BATCHES if device.type == "cpu" else (32, 64, 128, 256, 512):
            batches = [backbone.collate(ready[i : i + size]) for i in range(0, len(ready), size)]
            with torch.inference_mode(), torch.autocast(device.type, autocast, enabled=autocast is not None):
                started = time.perf_counter()
                for batch in batches:
                    logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
                logits.cpu()
            seconds = time.perf_counter() - started
            print(f"forward alone, batch {size}: {len(encoded) / seconds:,.1f} images/s", flush=True)
            best = min(best, seconds)

        def extracted(files: Files, contents: list[bytes], cache: Path) -> float:
            store, view = FeatureStore(cache), View("native", arguments.precision)
            space = open_space(store, backbone, {"name": "hftl"}, view)
            started = time.perf_counter()
            digests = digest_files(contents, store.file_digests)
            extract(
                Target(backbone, config), {view: space}, ConcatRows([files]), digests, Process(device),
                store=store, quiet=True,
            )  # fmt: skip
            return time.perf_counter() - started

        # Of one picture: what is done once, whether there are a hundred or a million.
        start = extracted(rows[:1], encoded[:1], Path(folder) / "one")
        whole = extracted(rows, encoded, Path(folder) / "all")
    print(f"decode and preprocess alone   {decode:7.2f} s  {len(encoded) / decode:8.1f} images/s")
    print(f"forward alone, best batch     {best:7.2f} s  {len(encoded) / best:8.1f} images/s")
    print(f"the whole extraction          {whole:7.2f} s  {len(encoded) / whole:8.1f} images/s")
    print(f"of it loading and proof       {start:7.2f} s  once for each model; the rest below is without")
    if device.type == "cpu":
        both = decode + best
        print(f"whole / sum of the halves     {whole / both:.3f}, the rest {(whole - start) / both:.3f}  (target 1.05)")
    else:
        slower = max(decode, best)
        rest = slower / (whole - start)
        print(f"rate / slower half's rate     {slower / whole:.3f}, the rest {rest:.3f}  (target 0.85)")


if __name__ == "__main__":
    tell_machine()
    main()

"""Time and peak memory of many rows: their features, a warm run, a look into the cache.

    python benchmarks/scale.py [--rows 10000,100000,1000000] [--memory 512M] [--large] [--folder FOLDER]
    python benchmarks/scale.py --pictures 500000 --folder FOLDER

Rows are texts of three words in a parquet file; a plugin reads them without a tokenizer, into a BERT of one layer
that gives 64 numbers and costs nearly nothing. Of each size: features that are computed, features that are stored, a
warm run (10 classes) with and without its report, and `hftl cache ls`. Each is a process of its own; reported are its
seconds, the most memory that it had, and how far that is above what it had with the libraries imported. Linux only,
because peaks are read from /proc.

``--large`` adds 10,000,000 rows. ``--pictures`` makes so many tiny pictures in folders of classes, each different,
under ``--folder``, where they stay for the next time, and measures the same on them with a ViT of one layer.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from llm_memory import resident

CLASSES, BASE, WRITTEN_AT_ONCE = 10, 256, 100_000
PLUGIN = """
from pathlib import Path

import hftl

HERE = Path(__file__).parent


@hftl.hookimpl
def hftl_register_backbones(register):
    register(hftl.BackboneSpec("cheap-text", "text", load_text))
    register(hftl.BackboneSpec("cheap-vit", "image", load_vit))


def load_vit(options):
    return hftl.ImageBackbone(hftl.Source.of(str(HERE / "vit")))


def load_text(options):
    import numpy as np
    import torch
    from hftl.backbones.protocol import Encoded

    class Cheap(hftl.TextBackbone):
        def encode(self, rows, names):
            if any(row[0][:1] != "w" for row in rows):
                return super().encode(rows, names)  # what a cut is proved on
            numbers = [[int(word[1:]) + 3 for word in text.split()] for (text,) in rows]
            ids = torch.from_numpy(np.array(numbers))
            ones = torch.ones(ids.shape[1], dtype=torch.int64)
            return [Encoded({"input_ids": row, "attention_mask": ones}, ids.shape[1]) for row in ids]

    return Cheap(hftl.Source.of(str(HERE / "bert")))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--pictures", type=int, metavar="COUNT")
    parser.add_argument("--folder", type=Path, help="where what is made goes; a temporary folder if not given")
    parser.add_argument("--only", default="", help="steps, such as run,ls; features are computed anyway")
    parser.add_argument("--profile", type=Path, help="folder for what cProfile says of each step")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        one(chosen.one)
        return
    if chosen.pictures and not chosen.folder:
        parser.error("--pictures: name a --folder for them")
    with working_folder(chosen.folder) as folder:
        make_plugin(folder)
        print(f"{'rows':>10}  {'step':16}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}{'above start':>13}", flush=True)
        if chosen.pictures:
            data = make_pictures(folder / f"pictures-{chosen.pictures}", chosen.pictures)
            measure(folder, "cheap-vit", data, chosen.pictures, chosen)
            return
        sizes = [int(size) for size in chosen.rows.split(",") if size] + ([10_000_000] if chosen.large else [])
        for size in sizes:
            data = make_texts(folder / f"texts-{size}.parquet", size)
            measure(folder, "cheap-text", data, size, chosen)


@contextmanager
def working_folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def measure(folder: Path, backbone: str, data: Path, rows: int, chosen: argparse.Namespace) -> None:
    flags = ["--backbone", backbone, "--data", str(data), "--memory", chosen.memory, "--quiet"]
    with tempfile.TemporaryDirectory(dir=folder) as out:
        steps = {
            "features, cold": ["features", *flags],
            "features, warm": ["features", *flags],
            "run, no report": ["run", *flags, "--no-report", "--out", f"{out}/plain"],
            "run": ["run", *flags, "--out", f"{out}/page"],
            "cache ls": ["cache", "ls"],
        }
        wanted = chosen.only.split(",") if chosen.only else []
        for name, arguments in steps.items():
            if wanted and name != "features, cold" and not any(word in name for word in wanted):
                continue
            found = in_process(folder, arguments, chosen.profile and chosen.profile / f"{name}-{rows}.prof")
            megabytes = f"{found['peak'] / 1e6:>9,.0f}{found['above'] / 1e6:>13,.0f}"
            print(f"{rows:>10,}  {name:16}{found['seconds']:>9.1f}{found['cpu']:>9.1f}{megabytes}", flush=True)
            if name == "features, cold" and backbone == "cheap-vit":
                time.sleep(3)  # the index remembers files that are at rest


def in_process(folder: Path, arguments: list[str], profile: Path | None) -> dict[str, Any]:
    path = os.pathsep.join([str(folder / "plugin"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    own = {"PYTHONPATH": path, "HFTL_CACHE": str(folder / "cache"), "HFTL_PLUGINS": "cheap"}
    told = {"SCALE_PROFILE": str(profile)} if profile else {}
    command = [sys.executable, __file__, "--one", *arguments]
    done = subprocess.run(
        command, env=os.environ | own | told, cwd=folder, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(arguments: list[str]) -> None:
    """In a process of its own: what one command takes, once the libraries are there."""
    if arguments[0] != "cache":
        import datasets  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401

        import hftl.pipeline  # noqa: F401
    from hftl.cli import main as command
    from hftl.cli.startup import put_off_collection

    put_off_collection()
    before, started, worked = resident("VmRSS"), time.perf_counter(), time.process_time()
    sys.argv = ["hftl", *arguments]
    profile = os.environ.get("SCALE_PROFILE")
    if profile:
        import cProfile

        profiler = cProfile.Profile()
        profiler.enable()
    try:
        command()
    except SystemExit as stop:
        if stop.code:
            raise
    if profile:
        profiler.disable()
        Path(profile).parent.mkdir(parents=True, exist_ok=True)
        profiler.dump_stats(profile)
    peak, seconds, cpu = resident("VmHWM"), time.perf_counter() - started, time.process_time() - worked
    print(json.dumps({"peak": peak, "above": peak - before, "seconds": seconds, "cpu": cpu}))


# -- prepared once -----------------------------------------------------------------------------------------


def make_plugin(folder: Path) -> None:
    """A plugin with two backbones that cost nearly nothing."""
    package = folder / "plugin"
    info = package / "cheap-1.0.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "cheap.py").write_text(PLUGIN)
    if info.exists():
        return
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertModel,
        PreTrainedTokenizerFast,
        ViTConfig,
        ViTImageProcessorPil,
        ViTModel,
    )

    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    config = BertConfig(vocab_size=BASE + 3, max_position_embeddings=8, initializer_range=0.5, **small)
    BertModel(config).save_pretrained(package / "bert")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *(f"w{i}" for i in range(BASE))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=8
    ).save_pretrained(package / "bert")
    ViTModel(ViTConfig(image_size=8, patch_size=8, **small)).save_pretrained(package / "vit")
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(package / "vit")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cheap\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hftl]\ncheap = cheap\n")


def make_texts(path: Path, rows: int) -> Path:
    """Texts of three words, all different; the label is what their words say most of, with some noise."""
    if path.exists():
        return path
    said = np.random.default_rng(0).standard_normal((BASE, CLASSES))
    noise = np.random.default_rng(1)
    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    unfinished = path.with_suffix(".unfinished")
    with pq.ParquetWriter(unfinished, schema) as writer:
        for start in range(0, rows, WRITTEN_AT_ONCE):
            # A step that shares no factor with 2^24 goes through all of them in a mixed order.
            number = np.arange(start, min(start + WRITTEN_AT_ONCE, rows)) * 10_368_889 % BASE**3
            digits = np.stack([number // BASE**2, number // BASE % BASE, number % BASE], 1)
            label = (said[digits].sum(1) + noise.standard_normal((len(number), CLASSES))).argmax(1)
            texts = [f"w{a} w{b} w{c}" for a, b, c in digits.tolist()]
            writer.write_table(pa.table({"text": texts, "label": [f"class {k}" for k in label]}, schema))
    unfinished.rename(path)
    return path


def make_pictures(folder: Path, count: int) -> Path:
    """Bitmaps of 8 × 8 in folders of classes, all different."""
    finished = folder.with_suffix(".finished")
    if finished.exists():
        return folder
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir(parents=True, exist_ok=True)
    side = 8
    header = struct.pack("<2sIHHI", b"BM", 54 + 3 * side * side, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 3 * side * side, 2835, 2835, 0, 0)
    random = np.random.default_rng(0)
    for start in range(0, count, WRITTEN_AT_ONCE):
        numbers = np.arange(start, min(start + WRITTEN_AT_ONCE, count))
        pixels = random.integers(0, 128, (len(numbers), side, side, 3), dtype=np.uint8)
        pixels += (numbers % CLASSES * 12).astype(np.uint8)[:, None, None, None]
        for number, picture in zip(numbers.tolist(), pixels, strict=True):
            (folder / f"class{number % CLASSES}" / f"{number}.bmp").write_bytes(header + picture.tobytes())
    finished.touch()
    return folder


if __name__ == "__main__":
    main()

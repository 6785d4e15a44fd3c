"""`hftl predict` beside decoding plus the bare forward, beside plain transformers, and its memory.

    python benchmarks/predict.py RUN INPUT [--rows 10000] [--repeats 3] [--threads 1]
    python benchmarks/predict.py RUN INPUT --memory 10000,100000

INPUT is a csv file with the run's columns, or a folder of pictures; rows are repeated until there are enough. Each
repeat times, one after the other and from files to labels:

- hftl: what `hftl predict RUN INPUT --out FILE.csv` does after loading;
- bare: the same processor and the same network in a plain loop that decodes, sorts by length, and runs the same
  batches: the least that can be done;
- plain: transformers' own processor and `AutoModelFor…` in the same loop;
- the pipeline, in batches of 32, on a part of the rows.

With --memory, the command itself runs in a process of its own for each number of rows, and its peak memory is printed.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import tell_machine
from PIL import Image

import hftl
from hftl.frozen.budget import CPU_ROWS, CPU_TOKENS
from hftl.inputs.sources import RowSources
from hftl.predict import answers
from hftl.results import ResultFile, Results

PIPELINE_ROWS = 200


def texts_of(path: Path, column: str, count: int) -> list[str]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row[column] for row in csv.DictReader(file)]
    # Numbered, so that no two rows are one.
    return [row if i < len(rows) else f"{row} {i}" for i, row in zip(range(count), itertools.cycle(rows), strict=False)]


def write_table(texts: Sequence[str], column: str, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[column], *([text] for text in texts)])
    return path


def with_hftl(model: hftl.Model, given: Path, out: Path) -> int:
    sources = RowSources(model.loaded).named(str(given))
    rows = (row for source in sources for row in source.rows())
    results = Results.of(model.loaded, None)
    with ResultFile(out, results) as file:
        for result in answers(model.loaded, rows, results, "error"):
            file.write(result)
    return file.rows


def loop_over_texts(tokenizer: Any, network: Any, texts: Sequence[str], max_length: int) -> None:
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    batch: list[int] = []
    batches: list[list[int]] = []
    for i in sorted(range(len(texts)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > CPU_TOKENS:
            batches.append(batch)
            batch = []
        batch.append(i)
    with torch.inference_mode():
        for chosen in [*batches, batch]:
            rows = {name: [values[i] for i in chosen] for name, values in encoded.items()}
            network(**tokenizer.pad(rows, return_tensors="pt")).logits.argmax(-1)


def loop_over_pictures(processor: Any, network: Any, paths: Sequence[str]) -> None:
    with torch.inference_mode():
        for start in range(0, len(paths), CPU_ROWS):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + CPU_ROWS]]
            network(**processor(images=images, return_tensors="pt")).logits.argmax(-1)


def seconds_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and of processors: where a machine is busy only the latter can be compared."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def compare(arguments: argparse.Namespace) -> None:
    model = hftl.load(arguments.run)
    backbone = model.loaded.backbone
    where, of_texts = backbone.source.folder, backbone.wants == "text"  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[Any]
        if of_texts:
            (column,) = model.loaded.input_columns or ["text"]
            rows = texts_of(arguments.input, column, arguments.rows)
            given = write_table(rows, column, folder / "rows.csv")
            theirs = transformers.AutoTokenizer.from_pretrained(where)
            network = transformers.AutoModelForSequenceClassification.from_pretrained(where).eval()
        else:
            found = sorted(path for path in arguments.input.rglob("*") if path.suffix in backbone.suffixes)
            given = folder / "photos"
            given.mkdir()
            for i, path in zip(range(arguments.rows), itertools.cycle(found), strict=False):
                (given / f"{i}{path.suffix}").write_bytes(path.read_bytes())
            rows = sorted(map(str, given.iterdir()))
            theirs = transformers.AutoImageProcessor.from_pretrained(where)
            network = transformers.AutoModelForImageClassification.from_pretrained(where).eval()
        pipe = transformers.pipeline(backbone.pipeline_tag, model=str(where), device="cpu")

        def loop(processor: Any, module: Any) -> None:
            if of_texts:
                loop_over_texts(processor, module, rows, backbone.max_length or 512)
            else:
                loop_over_pictures(processor, module, rows)

        ours = backbone.tokenizer if of_texts else backbone.processor  # type: ignore[attr-defined]
        with_hftl(model, given, folder / "warm.csv")
        against: dict[str, list[tuple[float, float]]] = {"bare": [], "plain": []}
        for repeat in range(arguments.repeats):
            mine = seconds_of(lambda: with_hftl(model, given, folder / "out.csv"))
            others = {
                "bare": seconds_of(lambda: loop(ours, model.network)),
                "plain": seconds_of(lambda: loop(theirs, network)),
            }
            for name, other in others.items():
                against[name].append((mine[0] / other[0], mine[1] / other[1]))
            speeds = ", ".join(f"{name} {len(rows) / other[0]:,.0f}" for name, other in others.items())
            print(f"repeat {repeat}: hftl {len(rows) / mine[0]:,.0f} rows/s, {speeds}", flush=True)
        some = rows[:PIPELINE_ROWS]
        part = seconds_of(lambda: list(pipe(some, batch_size=32)))
        against["pipeline"] = [(mine[0] / part[0] * len(some) / len(rows), mine[1] / part[1] * len(some) / len(rows))]
    for name, ratios in against.items():
        clock, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"hftl's time / {name:9} {clock:5.2f} by the clock, {cpu:5.2f} of CPU   (target 1.1)")


def memory(arguments: argparse.Namespace) -> None:
    model = hftl.load(arguments.run).loaded
    (column,) = model.input_columns or ["text"]
    for count in map(int, arguments.memory.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            given = write_table(texts_of(arguments.input, column, count), column, Path(folder) / "rows.csv")
            command = ["-m", "hftl", "predict", str(arguments.run), str(given), "--out", str(Path(folder) / "out.csv")]
            process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
        assert status == 0
        print(f"{count:>9,} rows: peak {used.ru_maxrss / 1024:,.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("input", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", help="numbers of rows, such as 10000,100000")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    memory(arguments) if arguments.memory else compare(arguments)


if __name__ == "__main__":
    tell_machine()
    main()

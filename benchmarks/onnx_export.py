"""ONNX beside torch: size, rows a second on the same encoded rows, and the metric; float32 and 8 bits.

    python benchmarks/onnx_export.py RUN...

RUN is a finished run. Ratios are of one process on the same threads; batches are of 16 rows of like length.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from machine import tell_machine

import hftl
from hftl.convert import BATCH_ROWS, data_of_run
from hftl.data import Texts
from hftl.export.loaded import LoadedModel
from hftl.runs.console import quiet_libraries

ROWS = 320


def rows_per_second(model: LoadedModel, batches: list) -> float:
    model.logits(batches[0])
    started = time.perf_counter()
    for batch in batches:
        model.logits(batch)
    return sum(map(len, batches)) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    print("run | format | MB | rows/s | speed beside torch | metric | change (95 %) | largest difference")
    for run in parser.parse_args().runs:
        with quiet_libraries():
            model = hftl.load(run).loaded
            inputs = data_of_run(model.run, model.backbone).test.inputs
            order = np.argsort(inputs.lengths()) if isinstance(inputs, Texts) else np.arange(len(inputs))
            chosen = order[np.linspace(0, len(order) - 1, min(ROWS, len(order))).astype(int)].tolist()
            encoded = model.backbone.encode([inputs[i] for i in chosen], [inputs.name(i) for i in chosen])
            batches = [encoded[i : i + BATCH_ROWS] for i in range(0, len(encoded), BATCH_ROWS)]
            made = {"onnx": hftl.to_onnx(run, quiet=True), "onnx int8": hftl.to_onnx(run, int8=True, quiet=True)}
            loaded = {"torch": model, **{name: hftl.load(each.folder).loaded for name, each in made.items()}}
            speeds = {name: rows_per_second(each, batches) for name, each in loaded.items()}
        one = made["onnx"]
        print(f"{run} | torch | {one.bytes_before / 1e6:.1f} | {speeds['torch']:.0f} | 1 | {one.before:.4f} | |")
        for name, each in made.items():
            change = f"{each.change.value:+.4f} ({each.change.low:+.4f} to {each.change.high:+.4f})"
            speed = f"{speeds[name]:.0f} | {speeds[name] / speeds['torch']:.2f}"
            worth = f"{each.after:.4f} | {change} | {each.largest_difference:.2g}"
            print(f"{run} | {name} | {each.bytes / 1e6:.1f} | {speed} | {worth}")


if __name__ == "__main__":
    tell_machine()
    torch.set_grad_enabled(False)
    main()

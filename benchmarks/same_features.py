"""Features of tiny models by another revision and by this one, compared to the bit; and whether this one finds them.

    python benchmarks/same_features.py REVISION

The other revision computes features into a store of its own; this one computes them anew, and then asks the other's
store, of which it must compute nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import tell_machine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import runs  # noqa: E402
import tiny  # noqa: E402

RECIPE = "from hftl import *\n@recipe\ndef r() -> Recipe:\n    return Recipe(backbone='x', data='y')\n"
CASES = [
    *((name, "pictures", "native") for name in ("vit", "resnet", "swin", "convnext")),
    *((name, "texts.csv", "native") for name in ("bert", "roberta", "gpt2", "distilbert")),
    *(("bert", "texts.csv", pooling) for pooling in ("mean", "cls")),
    ("bert", "pairs.csv", "native"),
]


def features(checkout: Path, folder: Path, case: tuple[str, str, str], cache: str, out: str) -> str:
    """What a checkout prints while it computes the features of a case and writes them as a matrix."""
    backbone, data, pooling = case
    flags = ["--backbone", f"./{backbone}", "--data", data, "--pooling", pooling, "--export", out]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HFTL_CACHE": str(folder / cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hftl", "features", "r.py", *flags]
    return subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision")
    revision = parser.parse_args().revision
    with tempfile.TemporaryDirectory() as name:
        folder, other = Path(name), Path(name) / "other"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(other), revision], cwd=ROOT, check=True)
        try:
            (folder / "r.py").write_text(RECIPE)
            runs.write_images(folder / "pictures")
            runs.write_texts(folder / "texts.csv", 60)
            runs.write_texts(folder / "pairs.csv", 60, pairs=True)
            for backbone in dict.fromkeys(case[0] for case in CASES):
                tiny.save(backbone, folder / backbone)
            for case in CASES:
                features(other, folder, case, "cache-other", "other.npy")
                features(ROOT, folder, case, "cache-own", "own.npy")
                same = np.load(folder / "other.npy").tobytes() == np.load(folder / "own.npy").tobytes()
                said = features(ROOT, folder, case, "cache-other", "again.npy")
                found = "features  0 computed" in said
                print(f"{' '.join(case):30} {'equal' if same else 'DIFFERENT':10} {'found' if found else 'FORGOTTEN'}")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=ROOT, check=True)


if __name__ == "__main__":
    tell_machine()
    main()

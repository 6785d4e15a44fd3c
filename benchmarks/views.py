"""What augmented views of few labelled pictures bring a head, against the same head on the pictures as they are.

    python benchmarks/views.py BACKBONE FOLDER...

Of each folder (with train and test, a folder for each class in them) 20 training pictures of each class are drawn by
each of five seeds. On the same draws a head is solved on the pictures alone, and on views of them; the whole test split
judges both. Differences are paired by draw. A run that is stopped goes on with what it has stored.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from machine import tell_machine

from hftl import Head, Recipe, run

Rows = list[tuple[str, str]]


def rows_of(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class."""
    return {each.name: sorted(each.iterdir()) for each in sorted(folder.iterdir()) if each.is_dir()}


def drawn(folder: Path, rows: int, seed: int) -> dict[str, Rows]:
    """So many training pictures of each class, and all test pictures."""
    draw = np.random.default_rng(seed)
    train: Rows = []
    for label, files in rows_of(folder / "train").items():
        chosen = draw.permutation(len(files))[:rows]
        train += [(str(files[i]), label) for i in sorted(chosen)]
    test = [(str(file), label) for label, files in rows_of(folder / "test").items() for file in files]
    return {"train": train, "test": test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, nargs="+", default=[8])
    parser.add_argument("--crop", type=float, default=0.6)
    parser.add_argument("--no-trivial-augment", action="store_true")
    given = parser.parse_args()
    changes = {"flip": True, "crop": given.crop, "trivial_augment": not given.no_trivial_augment}
    print(f"{given.rows} pictures a class, {given.seeds} draws, views by {changes}")
    for folder in given.folders:
        found: dict[int, dict[str, list[float]]] = {}
        for seed in range(given.seeds):
            data = drawn(folder, given.rows, seed)
            for views in (1, *given.views):
                head = Head(views=views, **changes) if views > 1 else Head()
                recipe = Recipe(backbone=given.backbone, data=data, method=head, seed=seed)
                with tempfile.TemporaryDirectory() as out:
                    metrics = run(recipe, out=f"{out}/run", quiet=True, report=False).metrics
                for name in ("accuracy", "f1_macro", "log_loss"):
                    found.setdefault(views, {}).setdefault(name, []).append(metrics["eval"][name])
                print(f"  {folder.name} seed {seed} views {views}: {metrics['eval']['accuracy']:.4f}", flush=True)
        print(f"\n{folder.name}: mean ± standard deviation over draws; difference to views=1, paired, ± standard error")
        for views, values in found.items():
            cells = []
            for name, each in values.items():
                gain = np.array(each) - np.array(found[1][name])
                error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else float("nan")
                against = f" ({gain.mean():+.4f} ± {error:.4f})" if views > 1 else ""
                cells.append(f"{name} {np.mean(each):.4f} ± {np.std(each):.4f}{against}")
            print(f"views={views}: {', '.join(cells)}")


if __name__ == "__main__":
    tell_machine()
    main()

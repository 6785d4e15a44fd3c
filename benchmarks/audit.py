"""What `hftl audit` finds of faults that are planted in real data, what it flags besides, and its seconds.

python benchmarks/audit.py [--data FOLDER] [--only NAME,…]

Digits ship with hftl; FOLDER (../shared/data by default) may hold trashnet, clothing_small, banking77 and
deit-tiny-patch16-224. Planted, each in rows of its own: exact copies and near copies of training rows in the test split
(pictures re-encoded, cropped, made smaller; texts with one word, case and punctuation, or blanks changed), and wrong
labels in 5 % of all rows. Rows that are flagged in the data as they came are counted beside: some of them are copies.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from machine import tell_machine
from PIL import Image

import hftl
from hftl import Audit, Head, Recipe
from hftl.data import load_data

PLANTED = 100
WRONG = 0.05


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def re_encoded(image: Image.Image, rng: random.Random) -> bytes:
    return encoded(image, quality=rng.randint(40, 70))


def cropped(image: Image.Image, rng: random.Random) -> bytes:
    """Up to 5 % off each side, as large as before."""
    width, height = image.size
    left, top, right, bottom = (rng.uniform(0, 0.05) for _ in range(4))
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return encoded(image.resize(image.size, Image.Resampling.BICUBIC, box), quality=85)


def smaller(image: Image.Image, rng: random.Random) -> bytes:
    scale = rng.uniform(0.5, 0.8)
    width, height = image.size
    return encoded(image.resize((int(scale * width), int(scale * height))), quality=85)


def encoded(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.getvalue()


PICTURES: dict[str, Callable[[Image.Image, random.Random], bytes]] = {
    "re-encoded": re_encoded,
    "cropped": cropped,
    "smaller": smaller,
}


@dataclass
class Planted:
    """What was planted: pairs of split and row for each kind of copy, and the rows with wrong labels."""

    copies: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    wrong: set[tuple[str, str]] = field(default_factory=set)


def plant_pictures(rows: Sequence[Row], folder: Path, kinds: Sequence[str], rng: random.Random) -> Planted:
    """Write a folder of pictures, with copies of training rows in the test split and 5 % of all in other classes."""
    planted = Planted()
    classes = sorted({row.label for row in rows})
    mixed = rng.sample(rows, len(rows))
    number = round(WRONG * len(rows))
    for row in mixed[:number]:
        row.label = rng.choice([name for name in classes if name != row.label])
    training = iter([row for row in mixed[number:] if row.split == "train"])
    for row in rows:
        path = row.write(folder, row.split, row.content)
        if row in mixed[:number]:
            planted.wrong.add((row.split, path))
    for kind in ("exact", *kinds):
        planted.copies[kind] = set()
        for _ in range(PLANTED):
            row = next(training)
            image = Image.open(io.BytesIO(row.content)).convert("RGB")
            content = row.content if kind == "exact" else PICTURES[kind](image, rng)
            planted.copies[kind].add(("test", row.write(folder, "test", content, kind)))
    return planted


@dataclass(eq=False)
class Row:
    """A picture or a text, with its split, name and label."""

    split: str
    name: str
    label: str
    content: bytes

    def write(self, folder: Path, split: str, content: bytes, kind: str = "row") -> str:
        path = folder / split / self.label / f"{kind}-{Path(self.name).stem}{Path(self.name).suffix or '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path.relative_to(folder).as_posix()


def pictures_of(folder: Path) -> list[Row]:
    files = sorted(folder.rglob("*.jpg"))
    return [Row(path.parts[-3], path.name, path.parts[-2], path.read_bytes()) for path in files]


def digits() -> list[Row]:
    data = load_data("sample:digits", wants="file")
    return [
        Row(split.name, f"{i}.png", data.label_names[split.labels[i]], split.inputs[i])
        for split in data.splits()
        for i in range(len(split))
    ]


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_word_changed(text: str, words: list[str], rng: random.Random) -> str:
    parts = text.split()
    parts[rng.randrange(len(parts))] = rng.choice(words)
    return " ".join(parts)


def case_and_marks(text: str) -> str:
    return f"{text.upper().rstrip('?.!')} !"


def blanks(text: str) -> str:
    return f" {text.replace(' ', '  ', 2)}\n"


def plant_texts(source: Path, folder: Path, rng: random.Random) -> Planted:
    """A folder of train.csv and test.csv with copies of training texts in the test split, and 5 % wrong labels."""
    planted = Planted()
    tables = {}
    for split in ("train", "test"):
        with (source / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            tables[split] = [[row["text"], row["label"]] for row in csv.DictReader(file)]
    classes = sorted({label for _, label in tables["train"]})
    places = [(split, i) for split, rows in tables.items() for i in range(len(rows))]
    mixed = rng.sample(places, len(places))
    number = round(WRONG * len(places))
    for split, i in mixed[:number]:
        row = tables[split][i]
        row[1] = rng.choice([name for name in classes if name != row[1]])
        planted.wrong.add((split, f"{split}.csv row {i + 1}"))
    training = iter([i for split, i in mixed[number:] if split == "train"])
    words = [word for text, _ in tables["train"] for word in text.split()]
    kinds: dict[str, Callable[[str], str]] = {
        "exact": str,
        "one word": lambda text: one_word_changed(text, words, rng),
        "case, marks": case_and_marks,
        "blanks": blanks,
    }
    for kind, change in kinds.items():
        planted.copies[kind] = set()
        for _ in range(PLANTED):
            text, label = tables["train"][next(training)]
            tables["test"].append([change(text), label])
            planted.copies[kind].add(("test", f"test.csv row {len(tables['test'])}"))
    folder.mkdir()
    for split, rows in tables.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["text", "label"], *rows])
    return planted


# ── what was found ───────────────────────────────────────────────────────────────────────────────────────────────────


def copies_in(answer: Audit) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Rows that are flagged as exact copies, and as near copies, be it as a row or as its other row."""
    exact, near = set(), set()
    for each in answer.findings:
        if each.other_row:
            place = exact if "nearly" not in each.why else near
            place |= {(each.split, each.row), (each.other_split, each.other_row)}
    return exact, near


def report(name: str, plain: Audit, answer: Audit, planted: Planted, clock: Clock) -> None:
    rows = sum(plain.rows.values())
    exact, near = copies_in(plain)
    near -= exact
    print(
        f"{name}: {rows:,} rows; as they came {len(exact):,} exact copies, {len(near):,} near ({len(near) / rows:.2%}),"
    )
    print(f"    {plain.counts.get('outlier', 0)} outliers, wrong labels {plain.wrong_labels}, leaks: {plain.leak}")
    exact, near = copies_in(answer)
    found = {kind: len(places & (exact | near)) / len(places) for kind, places in planted.copies.items()}
    print(f"    planted copies found: {', '.join(f'{kind} {share:.0%}' for kind, share in found.items())}")
    ranks = {(split, row): rank for split, ranked in answer.suspicion.items() for row, rank in ranked}
    wrong = len(planted.wrong)
    first = sum((ranks[place] or len(ranks)) <= len(ranks) / 10 for place in planted.wrong)
    listed = {(each.split, each.row) for each in answer.findings if each.finding == "wrong label"}
    right = len(listed & planted.wrong)
    print(f"    planted wrong labels {wrong:,}: {first / wrong:.1%} among the 10 % most suspicious,")
    share = right / max(len(listed), 1)
    print(f"    {right / wrong:.1%} of them among {len(listed):,} listed ({share:.0%} of these)")
    print(f"    estimated to be wrong: {answer.wrong_labels}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"    {clock.seconds:.1f} s on the clock, {clock.cpu:.1f} s of processors, peak {peak:,.0f} MiB", flush=True)


@dataclass
class Clock:
    """Seconds of the last audit once its features were stored, on the clock and of all processors."""

    seconds: float = 0.0
    cpu: float = 0.0

    def audit(self, recipe: Recipe) -> Audit:
        hftl.features(recipe, quiet=True)
        before = time.process_time()
        answer = hftl.audit(recipe, quiet=True)
        self.seconds, self.cpu = answer.seconds, time.process_time() - before
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where the other sets are")
    parser.add_argument("--only", help="names of sets, separated by commas")
    given = parser.parse_args()
    names = (given.only or "digits,trashnet,clothing_small,banking77").split(",")
    deit = given.data / "deit-tiny-patch16-224"
    for name in names:
        source, rng, clock = given.data / name, random.Random(0), Clock()
        if name != "digits" and not source.is_dir():
            print(f"{name}: not in {given.data}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) / "planted"
            if name == "banking77":
                recipe = Recipe(backbone="minilm-l6", data=str(source), method=Head(pooling="mean"))
                planted = plant_texts(source, where, rng)
            elif name == "digits":
                recipe = Recipe(backbone="hftl/glyph-vit-tiny", data="sample:digits")
                # Of 8 x 8 pixels nothing can be cropped.
                planted = plant_pictures(digits(), where, (), rng)
            else:
                recipe = Recipe(backbone=str(deit), data=str(source))
                planted = plant_pictures(pictures_of(source), where, tuple(PICTURES), rng)
            plain = clock.audit(recipe)
            answer = clock.audit(recipe.model_copy(update={"data": str(where)}))
            report(name, plain, answer, planted, clock)


if __name__ == "__main__":
    tell_machine()
    main()

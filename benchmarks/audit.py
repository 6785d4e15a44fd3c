"""What `hftl audit` finds of faults that are planted in real data, what it flags besides, and its seconds.

python benchmarks/audit.py [--data FOLDER] [--only NAME,…] [--seeds 3] [--show 50]

Digits ship with hftl; FOLDER (../shared/data by default) may hold trashnet, clothing_small, banking77, emobank and
deit-tiny-patch16-224. Planted, each in rows of its own: exact copies and near copies of training rows in the test split
(pictures re-encoded, cropped, made smaller; texts with one word, case and punctuation, or blanks changed), and wrong
labels in 5 % of all rows. Rows that are flagged in the data as they came are counted beside; which of them are copies
is for a person to say, who is shown pairs by --show. The table has means over seeds, and the least in brackets.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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


@dataclass(frozen=True)
class Found:
    """What an audit made of what was planted once.

    Attributes:
        copies: the share of the planted copies that was found, by kind.
        first: of wrong labels, the share among the tenth of the rows that is the most suspicious.
        listed: of wrong labels, the share that is listed; and of the listed labels the share that was planted.
        right: of the listed labels, the share that was planted.
        estimate: how many labels are said to be wrong, for one that was planted.
        seconds: of the audit, once features were stored.
        cpu: of all processors.
    """

    copies: dict[str, float]
    first: float
    listed: float
    right: float
    estimate: float
    seconds: float
    cpu: float


def found_in(answer: Audit, planted: Planted, cpu: float) -> Found:
    exact, near = copies_in(answer)
    copies = {kind: len(places & (exact | near)) / len(places) for kind, places in planted.copies.items()}
    ranks = {(split, row): rank for split, ranked in answer.suspicion.items() for row, rank in ranked}
    wrong = len(planted.wrong)
    first = sum((ranks[place] or len(ranks)) <= len(ranks) / 10 for place in planted.wrong)
    listed = {(each.split, each.row) for each in answer.findings if each.finding == "wrong label"}
    right = len(listed & planted.wrong)
    estimate = answer.wrong_labels.value / wrong if answer.wrong_labels else float("nan")
    return Found(copies, first / wrong, right / wrong, right / max(len(listed), 1), estimate, answer.seconds, cpu)


def show_as_it_came(name: str, plain: Audit, texts: bool, shown: int) -> None:
    """How many rows are flagged where nothing was planted, and some of the pairs, for a person to judge."""
    rows = sum(plain.rows.values())
    exact, near = copies_in(plain)
    near -= exact
    print(
        f"{name}: {rows:,} rows; as they came {len(exact):,} are exact copies, {len(near):,} ({len(near) / rows:.2%})"
    )
    print(f"    near ones, {plain.counts.get('outlier', 0)} outliers; labels said to be wrong: {plain.wrong_labels}")
    if plain.leak:
        print(f"    leaks: {plain.leak.rows:,} test rows; {plain.leak.metric} {plain.leak.gain.signed()} with them")
    pairs = [each for each in plain.findings if each.other_row and "nearly" in each.why]
    splits = {split.name: split.inputs for split in plain.data.splits()}
    for each in random.Random(0).sample(pairs, min(shown, len(pairs))):
        assert each.other_at is not None
        if texts:
            one, other = splits[each.split][each.at], splits[each.other_split][each.other_at]
            print(f"    [{each.label}] {' / '.join(one)}\n    {' ' * len(each.label)}   {' / '.join(other)}")
        else:
            print(f"    {each.row}   {each.other_row}   {each.score:.3f}")


def show_found(name: str, found: Sequence[Found]) -> None:
    """A line of the table: means over what was planted, and the least in brackets."""

    def share(values: Sequence[float]) -> str:
        return f"{np.mean(values):.1%} ({min(values):.0%})" if len(values) > 1 else f"{values[0]:.1%}"

    copies = [f"{kind} {share([each.copies[kind] for each in found])}" for kind in found[0].copies]
    cells = [
        name,
        ", ".join(copies),
        share([each.first for each in found]),
        share([each.listed for each in found]),
        share([each.right for each in found]),
        f"{np.mean([each.estimate for each in found]):.2f}",
        f"{np.median([each.seconds for each in found]):.1f}",
        f"{np.median([each.cpu for each in found]):.1f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


COLUMNS = (
    "set",
    "planted copies found",
    "flips in the top 10 %",
    "flips listed",
    "of those listed planted",
    "estimated / planted",
    "s",
    "s of processors",
)


def audited(recipe: Recipe) -> tuple[Audit, float]:
    """An audit once its features are stored, and its seconds of all processors."""
    hftl.features(recipe, quiet=True)
    before = time.process_time()
    answer = hftl.audit(recipe, quiet=True)
    return answer, time.process_time() - before


def plant(name: str, source: Path, folder: Path, rng: random.Random) -> Planted:
    if name == "banking77":
        return plant_texts(source, folder, rng)
    if name == "digits":
        # Of 8 x 8 pixels nothing can be cropped.
        return plant_pictures(digits(), folder, (), rng)
    return plant_pictures(pictures_of(source), folder, tuple(PICTURES), rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where the other sets are")
    parser.add_argument("--only", help="names of sets, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="how often faults are planted; 0 for none")
    parser.add_argument("--show", type=int, default=0, help="so many pairs that are near copies as they came")
    given = parser.parse_args()
    deit = str(given.data / "deit-tiny-patch16-224")
    lines = {}
    for name in (given.only or "digits,trashnet,clothing_small,banking77,emobank").split(","):
        source, texts = given.data / name, name in ("banking77", "emobank")
        if name != "digits" and not source.is_dir():
            print(f"{name}: not in {given.data}")
            continue
        backbone = "hftl/glyph-vit-tiny" if name == "digits" else "minilm-l6" if texts else deit
        recipe = Recipe(
            backbone=backbone,
            data="sample:digits" if name == "digits" else str(source),
            method=Head(pooling="mean" if texts else "native"),
        )
        show_as_it_came(name, audited(recipe)[0], texts, given.show)
        for seed in range(given.seeds if name != "emobank" else 0):
            with tempfile.TemporaryDirectory() as folder:
                planted = plant(name, source, Path(folder) / "planted", random.Random(seed))
                answer, cpu = audited(recipe.model_copy(update={"data": str(Path(folder) / "planted")}))
                lines.setdefault(name, []).append(found_in(answer, planted, cpu))
    if lines:
        print(f"\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        for name, found in lines.items():
            show_found(name, found)


if __name__ == "__main__":
    tell_machine()
    main()

"""Pictures of every page that hftl writes, to be looked at: wide and narrow, light and dark.

python benchmarks/screenshots.py --out shots [--texts DATA] [--targets DATA] [--labels DATA]

Makes runs on the digits that ship with hftl and on texts (those of --texts and so on; made-up ones else), a comparison
of three runs, and the scout's pages; then Debian's Chromium takes each page at 1280 and 400 pixels in both colours.
Needs chromium and chromedriver, and a backbone for texts: the plugin of minilm-l6, or --text-backbone.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import browsing  # noqa: E402

from hftl.cli import invoke  # noqa: E402

WIDTHS = (1280, 400)
DOES = ["lost", "found", "order", "cancel", "renew", "block", "activate", "top up", "return", "verify", "dispute"]
THINGS = ["my card", "a transfer", "the pin", "my account", "a refund", "the fee", "an app"]
AROUND = [
    "please help: {}",
    "how do I {}?",
    "I want to {} today",
    "{}, and quickly",
    "is it possible to {}",
    "can I {}?",
]


def intents() -> list[tuple[str, str]]:
    """77 made-up intents, ten sentences each, of which some do not say which intent they are of."""
    rng = random.Random(0)
    rows = []
    for does in DOES:
        for thing in THINGS:
            for _ in range(10):
                said = f"{does} {thing}" if rng.random() < 0.8 else f"{rng.choice(DOES)} {thing}"
                rows.append((rng.choice(AROUND).format(said), f"{does.replace(' ', '_')}_{thing.split()[-1]}"))
    return rows


def several() -> list[tuple[str, str]]:
    """Sentences about one to three things."""
    rng = random.Random(1)
    rows = []
    for _ in range(600):
        things = rng.sample(THINGS, rng.choice([1, 1, 2, 3]))
        text = rng.choice(AROUND).format(f"{rng.choice(DOES)} {' and '.join(things)}")
        rows.append((text, "|".join(thing.split()[-1] for thing in things)))
    return rows


def numbers() -> list[tuple[str, str]]:
    """Sentences with how urgent they are."""
    rng = random.Random(2)
    rows = []
    for _ in range(600):
        urgent = rng.randint(0, 4)
        text = " ".join([*["very"] * urgent, rng.choice(AROUND).format(f"{rng.choice(DOES)} {rng.choice(THINGS)}")])
        rows.append((text, f"{urgent + rng.gauss(0, 0.3):.3f}"))
    return rows


def write(path: Path, label: str, rows: Iterable[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", label])
        writer.writerows(rows)
    return str(path)


def make_pages(folder: Path, asked: argparse.Namespace) -> list[Path]:
    """Runs and questions in a folder; the pages that they leave."""
    digits = str(ROOT / "recipes" / "digits.py")
    texts = asked.texts or write(folder / "texts.csv", "intent", intents())
    labels = asked.labels or write(folder / "labels.csv", "things", several())
    separated = ["--task", "multi_label", *([] if asked.labels else ["--label-separator", "|"])]
    targets = asked.targets or write(folder / "targets.csv", "urgency", numbers())
    made = {
        "digits": [digits],
        "two-blocks": [digits, "--depth", "2"],
        "full": [digits, "--method", "full", "--epochs", "1"],
        "texts": [digits, "--backbone", asked.text_backbone, "--data", texts],
        "labels": [digits, "--backbone", asked.text_backbone, "--data", labels, *separated],
        "targets": [digits, "--backbone", asked.text_backbone, "--data", targets],
    }
    for name, flags in made.items():
        invoke(["run", *flags, "--quiet", "--out", str(folder / name)])
        (folder / name / "report.html").rename(folder / f"{name}.html")
    runs = [str(folder / name) for name in ("digits", "two-blocks", "full")]
    invoke(["report", *runs, "--out", str(folder / "comparison.html")])
    for command, flags in {
        "rank": ["--backbones", "hftl/glyph-vit-tiny", "--subset", "300"],
        "layers": ["--subset", "300"],
        "transfer": ["--subset", "300", "--seeds", "1"],
        "curve": [],
        "audit": [],
        "advise": ["--subset", "300", "--minutes", "0.1"],
    }.items():
        invoke([command, digits, "--quiet", "--report", str(folder / f"{command}.html"), *flags])
    return sorted(folder.glob("*.html"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--texts", help="texts of many classes, as --data takes them")
    parser.add_argument("--labels", help="texts with several labels")
    parser.add_argument("--targets", help="texts with numbers")
    parser.add_argument("--text-backbone", default="minilm-l6")
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hftl-pages-") as folder, browsing() as browser:
        os.environ.setdefault("HFTL_CACHE", f"{folder}/cache")
        for page in make_pages(Path(folder), asked):
            for width in WIDTHS:
                for dark in (False, True):
                    browser.show(page, width=width, dark=dark)
                    file = out / f"{page.stem}-{width}-{'dark' if dark else 'light'}.png"
                    browser.picture(file)
                    print(file)


if __name__ == "__main__":
    main()

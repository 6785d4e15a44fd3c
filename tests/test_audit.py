"""What `hftl audit` finds: against planted faults, and its numbers against independent computations."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import torch
from PIL import Image
from runs import Cli, predictions
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

import hftl
from hftl.data.dataset import RowNames, Texts
from hftl.data.images import grey_thumbnail
from hftl.errors import BadRowError
from hftl.recipes import Recipe
from hftl.scout import copies as of_copies
from hftl.scout.copies import Copies, Neighbours, copies_by_split, find_copies, groups_of_copies, joined_groups, nearest
from hftl.scout.oddities import far_rows, one_class_in_two_names, pairs_of_one_name
from hftl.scout.pictures import picture_similarity
from hftl.scout.suspects import confident_learning, how_many_are_wrong, large_residuals, wrong_in_each_label
from hftl.scout.texts import texts_of_one_word_apart
from hftl.store.digests import digest_texts

# ── neighbours and copies ────────────────────────────────────────────────────────────────────────────────────────────


def test_neighbours_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(of_copies, "_BLOCK_NUMBERS", 7 * 50)
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 3
    found = nearest(features, 4)
    centred = (features - features.mean(0)).numpy()
    distance, index = NearestNeighbors(n_neighbors=5, metric="cosine").fit(centred).kneighbors(centred)
    np.testing.assert_array_equal(found.index, index[:, 1:])
    np.testing.assert_allclose(1 - found.cosine, distance[:, 1:], atol=1e-5)
    assert nearest(features[:2], 10).index.tolist() == [[1], [0]]


def test_joined_groups_part_neither() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        one, other = generator.integers(0, 9, (2, 20))
        found = joined_groups(one, other)
        # By brute force: rows that share a group of either, and whoever shares one with them.
        same = (one[:, None] == one) | (other[:, None] == other)
        for _ in range(20):
            same = same @ same
        assert ((found[:, None] == found) == same).all()


def copies_of(texts: list[str], splits: list[int]):
    rows = Texts([(text,) for text in texts], RowNames([("t.csv", len(texts))]))
    nobody = Neighbours(np.zeros((len(texts), 1), dtype=np.int64), np.full((len(texts), 1), -1, dtype=np.float32))
    found = find_copies([rows], digest_texts(rows), nobody)
    return copies_by_split(found, np.array(splits))


def test_texts_that_differ_in_a_word_case_punctuation_or_blanks_are_near_copies():
    texts = [
        "my new card has not arrived yet",  # 0
        "My new card, has not   arrived yet!",  # 1 case, punctuation, blanks
        "my new card has not come yet",  # 2 one word of 0
        "my card has not arrived yet",  # 3 one word fewer than 0
        "my new card has not been seen anywhere",  # 4
        "open my card",  # 5
        "close my card",  # 6 one word of 5, which is too short for that
        "my new card has not arrived yet",  # 7 the same as 0
    ]
    found = copies_of(texts, [0, 1, 2, 3, 4, 5, 6, 7])
    assert {row: sorted(others) for row, others in found.items()} == {
        0: [1, 2, 3, 7],
        1: [0, 2, 3, 7],
        2: [0, 1, 7],
        3: [0, 1, 7],
        7: [0, 1, 2, 3],
    }
    assert found[7][0].exact
    assert found[7][0].similarity == 1
    assert not found[1][0].exact


def test_a_word_that_changes_the_class_carries_the_meaning_and_copies_of_copies_are_one_group():
    texts = [
        "how do I open my new account",
        "how do I close my new account",  # one word, another class
        "how do I open my first account",  # one word, the same class
        "HOW do I open my new account?",  # case and marks, whatever the class
        "something else is asked here today",
    ]
    rows = Texts([(text,) for text in texts], RowNames([("t.csv", len(texts))]))
    nobody = Neighbours(np.zeros((5, 1), dtype=np.int64), np.full((5, 1), -1, dtype=np.float32))
    found = find_copies([rows], digest_texts(rows), nobody, np.array([0, 1, 0, 2, 0]))
    assert found.first[found.pairs].tolist() == [[0, 2], [0, 3]]
    group = groups_of_copies(found)
    assert group[0] == group[2] == group[3]
    assert len({group[0], group[1], group[4]}) == 3
    everything = Copies(np.array([0, 1, 0]), np.array([0, 1]), np.zeros((0, 2), dtype=np.int64), np.zeros(0))
    assert groups_of_copies(everything).tolist() == [0, 1, 0]


def test_every_pair_of_one_word_apart_is_found_as_brute_force_finds_it():
    rng = np.random.default_rng(0)
    words = [tuple(rng.choice(list("abc"), rng.integers(4, 8)).tolist()) for _ in range(120)]
    words = list(dict.fromkeys(words))

    def one_apart(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
        if min(len(a), len(b)) < 5 or abs(len(a) - len(b)) > 1:
            return False
        if len(a) == len(b):
            return sum(x != y for x, y in zip(a, b, strict=True)) == 1
        short, long = sorted((a, b), key=len)
        return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))

    expected = {(i, j) for i in range(len(words)) for j in range(i) if one_apart(words[i], words[j])}
    same, apart = texts_of_one_word_apart([(" ".join(each),) for each in words])
    assert len(same) == 0
    assert {(max(pair), min(pair)) for pair in apart.tolist()} == expected
    assert len(expected) > 20


def test_an_apostrophe_is_no_end_of_a_word():
    same, apart = texts_of_one_word_apart([("I don't see my card",), ("i dont see my card!",), ("I can see my card",)])
    assert same.tolist() == [[0, 1]]
    assert {tuple(sorted(pair)) for pair in apart.tolist()} == {(0, 2), (1, 2)}


def test_a_pair_of_texts_is_a_copy_of_the_same_pair_only():
    rows = [("a b", "c d e f"), ("a b c d", "e f"), ("A b.", "c d e f"), ("a b", "c d e g")]
    same, apart = texts_of_one_word_apart(rows)
    assert same.tolist() == [[0, 2]]
    assert {tuple(sorted(pair)) for pair in apart.tolist()} == {(0, 3), (2, 3)}


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Spots of all sizes, the large ones strong, as in photos."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), 128.0)
    for cells, strength in ((3, 60), (6, 40), (12, 30), (24, 20)):
        spots = Image.fromarray(rng.integers(0, 256, (cells, cells + cells // 3, 3), dtype=np.uint8))
        pixels += strength * (np.asarray(spots.resize(size, Image.Resampling.BICUBIC)) / 127.5 - 1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_a_picture_encoded_again_smaller_or_cropped_is_the_same_and_another_is_not():
    whole = picture(0)
    variants = [
        jpeg(whole),
        jpeg(whole, 40),
        jpeg(whole.resize((90, 68))),
        jpeg(whole.crop((6, 3, 158, 117))),
        jpeg(whole.crop((0, 8, 152, 120)).resize((160, 120))),
        jpeg(picture(1)),
        jpeg(whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    ]
    thumbnails = np.stack([grey_thumbnail(content, "", 64) for content in variants])
    similarity = picture_similarity(thumbnails, np.array([[0, i] for i in range(7)] + [[4, 0]]))
    assert similarity[:3].min() > 0.97
    assert similarity[3:5].min() > 0.9
    assert similarity[5:7].max() < 0.5
    assert similarity[7] == pytest.approx(similarity[4])


def test_tiny_pictures_are_not_compared_by_their_looks():
    with pytest.raises(BadRowError, match="too small"):
        grey_thumbnail(jpeg(picture(0, (20, 90))), "x", 64)
    assert grey_thumbnail(jpeg(picture(0, (64, 32))), "x", 64).shape == (64, 64)


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def judged(rows: int = 300, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a good head, labels of which 30 are flipped, and which those are."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, rows)
    logits = rng.normal(0, 1, (rows, classes)) + 4 * np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    flipped = rng.choice(rows, 30, replace=False)
    labels = truth.copy()
    labels[flipped] = (truth[flipped] + rng.integers(1, classes, 30)) % classes
    return probabilities, labels, flipped


def by_the_paper(probabilities: np.ndarray, labels: np.ndarray) -> set[int]:
    """What confident learning lists, as its paper states it, row by row."""
    classes = probabilities.shape[1]
    thresholds = [probabilities[labels == j, j].mean() if (labels == j).any() else np.inf for j in range(classes)]
    off = set()
    for i, row in enumerate(probabilities):
        confident = [j for j in range(classes) if row[j] >= thresholds[j]]
        if confident and max(confident, key=lambda j: row[j]) != labels[i]:
            off.add(i)
    return off


def test_confident_learning_lists_what_its_paper_says():
    probabilities, labels, flipped = judged()
    found = confident_learning(probabilities, labels)
    assert set(np.flatnonzero(found.listed).tolist()) == by_the_paper(probabilities, labels)
    assert found.wrong.low < 30 < found.wrong.high
    most = np.argsort(found.score)[:30]
    assert np.isin(flipped, most).mean() > 0.9
    for i in most[:10]:
        assert found.suggested[i] == probabilities[i].argmax()
        assert found.score[i] == pytest.approx(probabilities[i, labels[i]])


def hard(rows: int, wrong: float, sure: float, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Probabilities that are true, at the temperature of a head that knows of no wrong label; labels; and flips."""
    rng = np.random.default_rng(seed)
    logits = sure * rng.normal(size=(rows, 5))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    flipped = rng.choice(rows, round(wrong * rows), replace=False)
    labels = truth.copy()
    labels[flipped] = (truth[flipped] + rng.integers(1, 5, len(flipped))) % 5
    return softmax(0.5 * logits, axis=1), labels, len(flipped)


@pytest.mark.parametrize("wrong", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("sure", [2.0, 6.0])
def test_the_number_of_wrong_labels_is_honest_whether_a_head_is_weak_or_strong(wrong: float, sure: float) -> None:
    held, values = 0, []
    for seed in range(40):
        probabilities, labels, number = hard(400, wrong, sure, seed)
        found = how_many_are_wrong(probabilities, labels)
        held += found.low <= number <= found.high
        values.append(found.value)
    assert held >= 36
    assert np.mean(values) == pytest.approx(400 * wrong, abs=5 if sure > 2 else 9)
    # A weak head is wrong about a third of the rows, which confident learning would list.
    if sure == 2 and not wrong:
        assert (probabilities.argmax(1) != labels).mean() > 0.2


def test_the_number_of_wrong_labels_is_the_likeliest() -> None:
    probabilities, labels, _ = hard(300, 0.08, 3.0, 3)
    logits = np.log(probabilities)

    def surprise(given: np.ndarray) -> float:
        own = softmax(np.exp(given[0]) * logits, axis=1)[np.arange(300), labels]
        chance = expit(given[1])
        return -float(np.log((1 - chance) * own + chance / 5).sum())

    # It has several minima: none wrong at a high temperature is one.
    options = {"xatol": 1e-8, "fatol": 1e-10}
    starts = [(beta, odds) for beta in (0.0, 0.7) for odds in (-4.0, -2.0)]
    best = min((minimize(surprise, s, method="Nelder-Mead", options=options) for s in starts), key=lambda m: m.fun)
    found = how_many_are_wrong(probabilities, labels)
    assert found.value == pytest.approx(300 * 0.8 * expit(best.x[1]), rel=0.02)
    for end in (found.low, found.high):
        odds = np.log(end / (240 - end))
        rest = min(surprise(np.array([beta, odds])) for beta in np.linspace(-1, 2, 301))
        assert rest - best.fun == pytest.approx(1.92, abs=0.05)


def test_where_nothing_looks_wrong_a_few_labels_still_may_be():
    labels = np.arange(100) % 2
    wrong = confident_learning(np.where(np.eye(2)[labels] > 0, 0.99, 0.01), labels).wrong
    assert (wrong.value, wrong.low) == (0, 0)
    assert 3 < wrong.high < 4


def test_each_of_several_labels_is_judged_alone():
    rng = np.random.default_rng(0)
    truth = (rng.random((200, 3)) < 0.4).astype(np.float32)
    probabilities = np.where(truth > 0, 0.9, 0.1) + rng.uniform(-0.01, 0.01, truth.shape)
    labels = truth.copy()
    labels[:8, 1] = 1 - labels[:8, 1]
    of_label, wrong = wrong_in_each_label(probabilities, labels)
    assert [np.flatnonzero(each.listed).tolist() for each in of_label] == [[], list(range(8)), []]
    assert wrong.low <= 8 <= wrong.high


def test_targets_far_from_what_is_predicted_are_listed():
    rng = np.random.default_rng(0)
    predicted = rng.normal(0, 10, (500, 2))
    targets = predicted + rng.normal(0, [1, 5], (500, 2))
    targets[3, 0] += 8
    targets[4, 1] += 8
    residuals, listed = large_residuals(predicted, targets)
    assert np.argwhere(listed).tolist() == [[3, 0]]
    assert residuals[3, 0] == pytest.approx(8 + (targets[3, 0] - 8 - predicted[3, 0]), rel=0.15)


def test_rows_far_from_everything_are_outliers():
    cosine = np.clip(np.random.default_rng(0).normal(0.8, 0.03, (200, 5)), -1, 1)
    cosine[7] = 0.1
    score, far = far_rows(cosine)
    assert np.flatnonzero(far).tolist() == [7]
    assert score.argmax() == 7
    assert not far_rows(cosine[:10])[1].any()


def test_one_class_in_two_names_is_found_and_two_alike_are_not():
    rng = np.random.default_rng(0)
    # 0 and 1 are one class; 2 and 3 are close, and can be told apart.
    labels = np.repeat(np.arange(4), 60)
    logits = rng.normal(0, 1, (240, 4))
    logits[:120, :2] += 4
    logits[120:, 2:] += 4
    logits[np.arange(120, 240), labels[120:]] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = one_class_in_two_names(["sofa", "couch", "cup", "mug"], probabilities, labels)
    assert [pair.classes for pair in found] == [("sofa", "couch")]
    odds = np.log(probabilities[:120, 0] / probabilities[:120, 1])
    assert found[0].told_apart is not None
    assert found[0].told_apart.value == pytest.approx(roc_auc_score(labels[:120] == 0, odds))


def test_names_that_differ_in_spelling_only_are_one_name():
    names = ["t-shirt", "T Shirt", "shirt", "1.5", "15", "?", "!", "Straße", "STRASSE"]
    assert pairs_of_one_name(names) == [(0, 1), (7, 8)]


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────

WORDS = [
    *runs.VERBS,
    *runs.PLACES[0].split(),
    "cat",
    "dog",
    "bird",
    "red",
    "blue",
    "two",
    "one",
    "over",
    "rug",
    "mat",
    "hill",
]


def sentences(rows: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 12)) for _ in range(rows)]


def write(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tiny.save("bert", tmp_path / "backbone")
    (tmp_path / "r.py").write_text(
        "from hftl import Head, Recipe, recipe\n\n@recipe\ndef r() -> Recipe:\n"
        "    return Recipe(backbone='backbone', data='data', method=Head(folds=2))\n"
    )
    return tmp_path / "r.py"


def plain_data(folder: Path, *, train: int = 60, test: int = 20) -> Path:
    folder.mkdir()
    rows = sentences(train + test, 0)
    # Classes of a formula's name, and of spelling alike.
    named = [[text, ["=1+1", "T Shirt", "t-shirt"][i % 3]] for i, text in enumerate(rows)]
    named[train] = list(named[0])  # a leak
    named[train + 1] = [named[1][0].upper(), named[1][1]]  # a near leak
    named[5] = list(named[4])  # a copy, labelled otherwise
    named[5][1] = "=1+1"
    write(folder / "train.csv", [["text", "label"], *named[:train]])
    write(folder / "test.csv", [["text", "label"], *named[train:]])
    return folder


def test_an_audit_finds_what_was_planted_and_its_file_drops_it(cli: Cli, recipe: Path, tmp_path: Path):
    plain_data(tmp_path / "data")
    out = cli.ok("audit", recipe, "--export", "found.csv")
    assert "classes T Shirt and t-shirt: the names differ in spelling only" in out
    assert "Test rows that stand in training too, exactly or nearly: 2;" in out
    with (tmp_path / "found.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [
        *("row", "split", "label", "finding", "other row", "suggested label", "score", "why", "digest"),
    ]
    by_row = {(each["split"], each["row"]): each for each in found if each["finding"] in ("leak", "copy", "near copy")}
    assert {key: each["finding"] for key, each in by_row.items()} == {
        ("train", "train.csv row 1"): "leak",
        ("train", "train.csv row 2"): "leak",
        ("train", "train.csv row 6"): "copy",
    }
    assert by_row["train", "train.csv row 1"]["other row"] == "test.csv row 1"
    copy = by_row["train", "train.csv row 6"]
    assert (copy["label"], copy["suggested label"]) == ("'=1+1", "T Shirt")

    kept = [each for each in found if each["finding"] in ("leak", "copy")]
    write(tmp_path / "drop.csv", [list(found[0]), *(list(each.values()) for each in kept)])
    again = json.loads(cli.ok("audit", recipe, "--drop", "drop.csv", "--json"))
    assert again["rows"] == {"train": 57, "test": 20}
    assert not [each for each in again["findings"] if each["finding"] in ("leak", "copy", "near copy")]
    assert again["leak"] is None
    cli.ok("run", recipe, "--drop", "drop.csv", "--out", "run")
    assert len(predictions(tmp_path / "run")["row"]) == 20


def test_json_is_one_object_and_python_gives_the_same(cli: Cli, recipe: Path, tmp_path: Path):
    plain_data(tmp_path / "data")
    answer = json.loads(cli.ok("audit", recipe, "--json"))
    assert "features" in cli.err
    assert sorted(rank for split in answer["suspicion"].values() for _, rank in split) == list(range(1, 81))
    assert answer["suspicion"]["test"][2][0] == "test.csv row 3"
    again = hftl.audit(Recipe(backbone="backbone", data="data"), quiet=True).as_json()
    for each in (answer, again):
        each.pop("seconds")
    assert again == answer


def test_the_score_without_leaks_is_that_of_the_same_head_on_the_other_rows(cli: Cli, recipe: Path, tmp_path: Path):
    plain_data(tmp_path / "data")
    leak = json.loads(cli.ok("audit", recipe, "--json"))["leak"]
    cli.ok("run", recipe, "--folds", "5", "--out", "run")
    read = predictions(tmp_path / "run")
    right = np.array(read["label"]) == np.array(read["prediction"])
    assert leak["rows"] == 2
    assert leak["with_them"]["value"] == pytest.approx(right.mean())
    assert leak["without_them"]["value"] == pytest.approx(right[2:].mean())
    assert leak["gain"]["value"] == pytest.approx(right.mean() - right[2:].mean())
    assert leak["gain"]["low"] <= leak["gain"]["value"] <= leak["gain"]["high"]


def test_pictures_are_found_that_were_encoded_again_or_cropped(cli: Cli, tmp_path: Path):
    tiny.save("vit", tmp_path / "backbone")
    for split, start, rows in (("train", 0, 12), ("test", 12, 6)):
        for i in range(start, start + rows):
            folder = tmp_path / "data" / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.jpg").write_bytes(jpeg(picture(i)))
    (tmp_path / "data/test/class0/again.jpg").write_bytes(jpeg(picture(0), 60))
    (tmp_path / "data/test/class1/part.jpg").write_bytes(jpeg(picture(1).crop((4, 2, 158, 118))))
    answer = hftl.audit(Recipe(backbone="backbone", data="data"), quiet=True)
    leaks = {(each.row, each.other_row) for each in answer.findings if each.finding == "leak"}
    assert leaks == {
        ("train/class0/0.jpg", "test/class0/again.jpg"),
        ("train/class1/1.jpg", "test/class1/part.jpg"),
    }
    assert answer.leak is not None
    assert answer.leak.rows == 2


@pytest.mark.parametrize(
    ("labels", "flags", "judged"),
    [
        (["only"] * 12, (), False),
        ([f"c{i // 2}" for i in range(12)], (), True),
        ([f"c{i}" for i in range(500)] * 2, (), True),
        ([i % 7 + 0.25 for i in range(30)], ("--task", "regression"), True),
        (["a|b", "a", "b", "c|a"] * 8, ("--task", "multi_label"), True),
        (["a", "b", "a"], (), True),
        ([0.5, 1.5, 2.5], ("--task", "regression"), True),
    ],
    ids=[
        "one class",
        "2 rows a class",
        "500 classes",
        "regression",
        "several labels",
        "3 rows",
        "3 numbers",
    ],
)
def test_odd_data_are_audited_or_refused_in_one_line(
    cli: Cli, recipe: Path, tmp_path: Path, labels: list[object], flags: tuple[str, ...], judged: bool
):
    (tmp_path / "data").mkdir()
    rows = [[text, label] for text, label in zip(sentences(len(labels), 1), labels, strict=True)]
    write(tmp_path / "data" / "train.csv", [["text", "label"], *rows])
    status = cli("audit", recipe, "--json", "--label-columns", "label", *flags)
    if status:
        assert status == 2, cli.err
        assert not judged, cli.err
        assert len([line for line in cli.err.splitlines() if line.startswith("hftl: ")]) == 1
        return
    answer = json.loads(cli.out)
    ranks = [rank for split in answer["suspicion"].values() for _, rank in split]
    assert len(ranks) == len(labels)
    assert (any(rank is not None for rank in ranks)) == judged
    assert bool(answer["notes"]) != judged

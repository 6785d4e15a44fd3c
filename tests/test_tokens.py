"""Sentences whose words have tags, from files to a model that anybody loads."""

from __future__ import annotations

import json
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from runs import Cli, metrics, predictions, write_sentences
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

import hftl
from hftl.backbones.batching import WordBatch
from hftl.backbones.loading import for_words
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.words import WordBackbone, in_windows
from hftl.data import load_data
from hftl.metrics import evaluate_predictions
from hftl.metrics.entities import SentenceSums
from hftl.tagging import Tagging
from hftl.tasks import Task

ARCHITECTURES = ["bert", "roberta", "modernbert"]
if os.environ.get("HFTL_LONG"):
    ARCHITECTURES += [
        "distilbert",
        "electra",
        "mpnet",
        "deberta-v2",
        "xlnet",
        "bart",
        "falcon",
        "gpt2",
        "llama",
        "qwen3",
        "gemma",
        "mistral",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences")
    write_sentences(folder / "train.jsonl", 60)
    write_sentences(folder / "test.jsonl", 20, seed=1)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("bert", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(data: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(out.parent / "cache"))
        hftl.run(hftl.Recipe(backbone=str(bert), data=str(data), method=hftl.Head(folds=3)), out=out, quiet=True)
    return out


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# ── tags ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (["O", "B-a", "I-a", "B-b", "I-b"], "BIO"),
        (["O", "B-a", "I-a", "E-a", "S-a", "B-b-c", "E-b-c"], "BIOES"),
        (["O", "I-a", "I-b"], "IO"),
        (["O", "B", "I"], "BIO"),
    ],
)
def test_entities_and_scores_are_those_of_seqeval(names: list[str], scheme: str):
    sequence = pytest.importorskip("seqeval.metrics.sequence_labeling")
    draw = np.random.default_rng(0)
    tagging = Tagging(tuple(names))
    assert tagging.scheme == scheme
    sentences = [draw.integers(0, len(names), draw.integers(1, 9)) for _ in range(400)]
    for tags in sentences:
        ours = [(span.type, span.start, span.end - 1) for span in tagging.spans(tags.tolist())]
        assert ours == sequence.get_entities([names[tag] for tag in tags])
    labels = np.empty(len(sentences), dtype=object)
    labels[:] = sentences
    flat = np.concatenate(sentences)
    logits = draw.normal(size=(len(flat), len(names)))
    logits[np.arange(len(flat)), flat] += 1.5
    found = evaluate_predictions(Task.TOKEN_LABELS, logits, labels, names)
    true = [[names[tag] for tag in tags] for tags in sentences]
    said = Task.TOKEN_LABELS.by_row(logits.argmax(1), labels)
    predicted = [[names[tag] for tag in tags] for tags in said]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = {
            "f1": sequence.f1_score(true, predicted),
            "precision": sequence.precision_score(true, predicted),
            "recall": sequence.recall_score(true, predicted),
            "f1_macro": sequence.f1_score(true, predicted, average="macro"),
            "accuracy": sequence.accuracy_score(true, predicted),
        }
        report = sequence.classification_report(true, predicted, output_dict=True)
    assert {name: found[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)
    for kind, numbers in found["per_type"].items():
        assert numbers["f1"] == pytest.approx(report[kind]["f1-score"], abs=1e-9)
        assert numbers["support"] == report[kind]["support"]
    # A sample in which some sentences stand twice and others not at all is scored as such sentences are.
    times = draw.integers(0, 3, len(sentences))
    drawn = np.repeat(np.arange(len(sentences)), times)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    again = SentenceSums.of(scores, labels, names).at(times[None].astype(float))
    some = evaluate_predictions(
        Task.TOKEN_LABELS,
        np.concatenate([Task.TOKEN_LABELS.by_row(logits, labels)[i] for i in drawn]),
        labels[drawn],
        names,
    )
    assert {name: float(value[0]) for name, value in again.items()} == pytest.approx(
        {name: some[name] for name in again}, abs=1e-9
    )


def test_bilou_is_bioes_and_other_tags_are_judged_word_by_word():
    bilou = Tagging(("O", "B-a", "I-a", "L-a", "U-a"))
    assert bilou.scheme == "BILOU"
    assert [(span.start, span.end) for span in bilou.spans([4, 0, 1, 2, 3, 4])] == [(0, 1), (2, 5), (5, 6)]
    plain = Tagging(("NOUN", "O", "VERB"))
    assert (plain.scheme, plain.types) == ("plain", ["NOUN", "VERB"])
    assert [(span.type, span.start) for span in plain.spans([0, 0, 1, 2])] == [("NOUN", 0), ("NOUN", 1), ("VERB", 3)]


# ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_columns_task_and_scheme_are_inferred_and_said(data: Path):
    read = load_data(str(data), wants="text")
    assert read.task is Task.TOKEN_LABELS
    assert read.label_names == ["B-animal", "B-place", "I-animal", "I-place", "O"]
    assert any("scheme BIO of 2 types" in note for note in read.notes)
    first = lines_of(data / "train.jsonl")[0]
    assert list(read.train.inputs[0]) == first["tokens"]
    assert [read.label_names[tag] for tag in read.train.labels[0]] == first["tags"]


def test_conll_files_and_tables_give_the_same_rows(data: Path, tmp_path: Path):
    import datasets
    import pandas as pd

    expected = load_data(str(data / "train.jsonl"), wants="text")
    rows = lines_of(data / "train.jsonl")
    text = "\n\n".join("\n".join(f"{w} X {t}" for w, t in zip(r["tokens"], r["tags"], strict=True)) for r in rows)
    for name in ("a.conll", "a.bio", "a.txt"):
        (tmp_path / name).write_text(f"-DOCSTART- X O\n\n{text}\n")
    (tmp_path / "tabs.iob").write_text("# id = 1\n" + text.replace(" ", "\t"))
    names = sorted({tag for row in rows for tag in row["tags"]})
    numbered = [{"words": row["tokens"], "ner_tags": [names.index(tag) for tag in row["tags"]]} for row in rows]
    feature = datasets.Features(
        {"words": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    named = datasets.Dataset.from_list(numbered, features=feature)
    named.to_parquet(tmp_path / "named.parquet")
    frame = pd.DataFrame(rows)
    files = [str(tmp_path / name) for name in ("a.conll", "a.bio", "a.txt", "tabs.iob", "named.parquet")]
    for given in (*files, named, frame):
        read = load_data(given, wants="text")
        assert read.task is Task.TOKEN_LABELS, given
        assert read.label_names == expected.label_names
        assert list(read.train.inputs) == list(expected.train.inputs)
        assert [row.tolist() for row in read.train.labels] == [row.tolist() for row in expected.train.labels]


ROW = {"tokens": ["the", "cat"], "tags": ["O", "B-animal"]}


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([ROW, {"tokens": ["the"], "tags": ["O", "O"]}], [], "train.jsonl row 2: 1 word in column 'tokens' and 2 tags"),
        ([ROW, {"tokens": [], "tags": []}], [], "train.jsonl row 2: an empty sentence"),
        ([{"tags": ["O"]}] * 2, ["--task", "token_labels"], "no column of words"),
        ([{"tags": ["O"]}] * 2, [], "no text column; found tags (list): give data that have one, or state it with"),
        ([{"tokens": ["a"], "other": "b"}] * 2, ["--task", "token_labels"], "no column of tags"),
        ([{"tokens": "a b", "tags": "O O"}] * 2, ["--task", "token_labels"], "no column of words"),
        ([{"tokens": ["a", None], "tags": ["O", "B-x"]}] * 2, [], "word 2 in column 'tokens' is missing"),
        ([ROW, {"tokens": ["the"], "tags": [""]}], [], "row 2: no label (empty, null or NaN) in column 'tags'"),
    ],
)
def test_rows_that_cannot_be_sentences_are_named(
    cli: Cli, tmp_path: Path, bert: Path, rows: list[dict[str, Any]], options: list[str], said: str
):
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    assert said in cli.refused("run", "--backbone", bert, "--data", file, "--out", tmp_path / "run", *options)


def test_a_tag_that_training_never_saw_is_refused(cli: Cli, tmp_path: Path, bert: Path):
    (tmp_path / "train.jsonl").write_text("\n".join([json.dumps(ROW)] * 4))
    (tmp_path / "test.jsonl").write_text(json.dumps({"tokens": ["a", "b"], "tags": ["O", "B-new"]}))
    line = cli.refused("run", "--backbone", bert, "--data", tmp_path, "--out", tmp_path / "run")
    assert "1 label that training never saw: 'B-new' (first: test.jsonl row 1)" in line


def test_a_conll_line_of_other_columns_is_named(tmp_path: Path):
    (tmp_path / "a.conll").write_text("the O\ncat B-a more\n")
    with pytest.raises(hftl.DataError, match=r"a\.conll line 2: 3 columns, expected 2"):
        load_data(str(tmp_path / "a.conll"), wants="text")


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_word_of_a_long_sentence_is_dropped_or_cut():
    draw = random.Random(0)
    for _ in range(200):
        word_of: list[int | None] = [None]
        for word in range(draw.randrange(1, 60)):
            word_of += [word] * draw.choice([1, 1, 2, 5])
        word_of.append(None)
        ids = list(range(len(word_of)))
        sentence = in_windows({"input_ids": ids}, word_of, 12)
        assert len({len(window["input_ids"]) for window in sentence.windows}) == 1
        assert len(sentence.words) == 1 + max(word for word in word_of if word is not None)
        for word, (window, position) in enumerate(sentence.words):
            read = sentence.windows[window]["input_ids"]
            own = [place for place, each in enumerate(word_of) if each == word]
            assert read[position] == own[0]
            assert set(own) <= set(read)
            # No other window shows more on the side where it shows less.
            seen = [
                min(each["input_ids"].index(own[0]), len(read) - 1 - each["input_ids"].index(own[-1]))
                for each in sentence.windows
                if set(own) <= set(each["input_ids"])
            ]
            assert min(position, len(read) - 1 - read.index(own[-1])) == max(seen)


def test_a_word_without_tokens_is_read_as_the_unknown_token(bert: Path):
    backbone = for_words(TextBackbone(local_source(bert)))
    assert isinstance(backbone, WordBackbone)
    (row,) = backbone.encode([("the", "\t", "cat")], ["row 1"])
    (window,) = row.windows
    unknown = backbone.tokenizer.unk_token_id
    assert [window["input_ids"][place] == unknown for _, place in row.words] == [False, True, False]
    with pytest.raises(hftl.errors.BadRowError, match="an empty sentence"):
        backbone.encode([()], ["row 1"])


def test_a_word_without_tokens_is_refused_where_no_token_says_unknown(cli: Cli, tmp_path: Path):
    backbone = tiny.save("bert", tmp_path / "bert")
    stated = json.loads((backbone / "tokenizer_config.json").read_text())
    (backbone / "tokenizer_config.json").write_text(json.dumps(stated | {"unk_token": None}))
    file = tmp_path / "train.jsonl"
    rows = [ROW, {"tokens": ["the", "\t"], "tags": ["O", "O"]}, *[ROW] * 6]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    line = cli.refused("run", "--backbone", backbone, "--data", file, "--out", tmp_path / "run")
    assert "train.jsonl row 2: word 2, '\\t', gives no token" in line
    assert "remove the word and its tag" in line


def test_a_batch_of_sentences_gives_what_each_gives_alone(bert: Path):
    backbone = for_words(TextBackbone(local_source(bert)))
    torch.manual_seed(0)
    model, _ = backbone.build(backbone.config("token_labels", ["O", "B-a"]))
    rows = backbone.encode([("the", "cat"), tuple(tiny.WORDS) * 3, ("a", "red", "dog", "sat")], ["a", "b", "c"])
    assert rows[1].truncated
    batch = backbone.collate(rows)
    assert isinstance(batch, WordBatch)
    with torch.no_grad():
        together = batch.of_rows(model(**batch).logits)
        for row, found in zip(rows, together, strict=True):
            alone = backbone.collate([row])
            torch.testing.assert_close(found, alone.of_words(model(**alone).logits), atol=1e-5, rtol=1e-5)
    assert [len(found) for found in together] == [2, 3 * len(tiny.WORDS), 4]


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def plain_logits(model: Path, rows: list[list[str]]) -> list[torch.Tensor]:
    """Logits at the first token of each word, by transformers alone."""
    network = AutoModelForTokenClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = []
    for row in rows:
        batch = tokenizer([row], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            logits = network(**batch).logits[0]
        word_of = batch.word_ids(0)
        found.append(logits[[word_of.index(word) for word in range(len(row))]])
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_export_gives_a_stranger_the_runs_scores(name: str, data: Path, tmp_path: Path):
    source = tiny.save(name, tmp_path / "model")
    recipe = hftl.Recipe(backbone=str(source), data=str(data), method=hftl.Head(folds=2, strengths=[1.0, 0.1]))
    hftl.run(recipe, out=tmp_path / "run", quiet=True)
    rows = [row["tokens"] for row in lines_of(data / "test.jsonl")]
    ours = predictions(tmp_path / "run")
    for scores, logits in zip(ours["scores"], plain_logits(tmp_path / "run" / "model", rows), strict=True):
        torch.testing.assert_close(torch.tensor(scores), logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_a_pipeline_gives_the_runs_entities(run: Path, data: Path):
    rows = [row["tokens"] for row in lines_of(data / "test.jsonl")]
    find = pipeline("token-classification", model=str(run / "model"), aggregation_strategy="simple")
    ours = hftl.load(run).predict(rows)
    for row, said in zip(rows, ours, strict=True):
        text = " ".join(row)
        theirs = [(each["entity_group"], each["start"], each["end"]) for each in find(text)]
        assert [(each["label"], each["start"], each["end"]) for each in said["entities"]] == theirs
        assert all(text[each["start"] : each["end"]] == each["text"] for each in said["entities"])
    assert [said["tags"] for said in ours] == predictions(run)["prediction"]


def test_the_head_is_scikit_learns_on_the_same_words(data: Path, bert: Path):
    from sklearn.linear_model import LogisticRegression

    recipe = hftl.Recipe(backbone=str(bert), data=str(data))
    features = hftl.features(recipe, quiet=True)
    x, y = features.of("train")
    assert len(x) == sum(len(row["tokens"]) for row in lines_of(data / "train.jsonl"))
    from hftl.heads import fit_linear

    fit = fit_linear(
        torch.from_numpy(x), torch.from_numpy(y), task="single_label", num_labels=5, strengths=[1.0], calibrate=False
    )
    scale = x.std(0)
    theirs = LogisticRegression(C=1.0, tol=1e-9, max_iter=10_000).fit((x - x.mean(0)) / scale, y)
    ours = fit.logits(torch.from_numpy(x)).softmax(-1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba((x - x.mean(0)) / scale), atol=2e-3)


def test_folds_never_part_the_words_of_a_sentence():
    from hftl.heads.folds import task_folds

    draw = torch.Generator().manual_seed(0)
    groups = torch.arange(40).repeat_interleave(torch.randint(1, 9, (40,), generator=draw))
    labels = torch.randint(0, 4, (len(groups),), generator=draw)
    folds = task_folds(labels, Task.SINGLE_LABEL, 5, 0, groups)
    assert all(len(folds[groups == group].unique()) == 1 for group in range(40))
    assert len(folds.unique()) == 5


def test_a_second_run_computes_nothing_and_evaluating_gives_the_runs_numbers(
    cli: Cli, data: Path, bert: Path, tmp_path: Path
):
    for name in ("a", "b"):
        cli.ok("run", "--backbone", bert, "--data", data, "--folds", "2", "--out", tmp_path / name, "--quiet")
    assert metrics(tmp_path / "b")["features"]["computed"] == 0
    report = metrics(tmp_path / "b")["eval"]
    cli.ok("evaluate", tmp_path / "b", "--data", data, "--out", tmp_path / "again.json", "--quiet")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["f1"] == pytest.approx(report["f1"], abs=1e-9)
    card = (tmp_path / "b" / "model" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "By type of entity" in card


def test_predict_says_entities_with_their_places(cli: Cli, run: Path, tmp_path: Path):
    text = "the  red cat sat."
    (line,) = cli.ok("predict", run, text, "--json").splitlines()
    result = json.loads(line)
    assert len(result["tags"]) == 5
    for entity in result["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
    (tmp_path / "rows.jsonl").write_text(
        '{"tokens": ["the", "cat"]}\n{"tokens": []}\n{"tokens": ["a", "hill", "ran"]}\n'
    )
    for suffix in ("csv", "jsonl", "parquet"):
        cli.ok("predict", run, tmp_path / "rows.jsonl", "--out", tmp_path / f"out.{suffix}", "--quiet")
    written = lines_of(tmp_path / "out.jsonl")
    assert [row.get("tags") and len(row["tags"]) for row in written] == [2, None, 3]
    assert "no word" in written[1]["error"]
    assert "leave it out" in cli.refused("predict", run, text, "--top-k", "2")


@pytest.mark.parametrize("method", ["full", "lora", "partial"])
def test_fine_tuning_starts_at_the_solved_head_and_its_export_is_the_runs(
    method: str, data: Path, bert: Path, tmp_path: Path
):
    options = {"partial": {"freeze": 1}, "lora": {"r": 2}, "full": {}}[method]
    kind = {"partial": hftl.Partial, "lora": hftl.LoRA, "full": hftl.Full}[method]
    recipe = hftl.Recipe(backbone=str(bert), data=str(data), method=kind(epochs=2, lr=1e-3, patience=2, **options))
    hftl.run(recipe, out=tmp_path / "run", quiet=True)
    report = metrics(tmp_path / "run")["finetune"]
    assert report["epochs"][0]["f1"] > 0.3  # the solved head
    rows = [row["tokens"] for row in lines_of(data / "test.jsonl")]
    ours = predictions(tmp_path / "run")["scores"]
    for scores, logits in zip(ours, plain_logits(tmp_path / "run" / "model", rows), strict=True):
        torch.testing.assert_close(torch.tensor(scores), logits.softmax(-1), atol=1e-4, rtol=1e-3)


def test_the_loss_of_a_step_is_that_of_ignored_tokens(data: Path, bert: Path):
    """What is trained on is cross-entropy over first tokens, as with the label -100 on all others."""
    from hftl.backbones.batching import line_logits
    from hftl.finetune.losses import Loss
    from hftl.finetune.rows import Encoder, TrainRows
    from hftl.parallel import Process

    read = load_data(str(data), wants="text")
    backbone = for_words(TextBackbone(local_source(bert)))
    torch.manual_seed(0)
    model, _ = backbone.build(backbone.config(read.task, read.label_names))
    loss = Loss(read.task, len(read.label_names))
    rows = TrainRows(
        Encoder(backbone, read.train), loss, Process(torch.device("cpu"), 0, 1), seed=0, batch_size=8, micro_batch=3
    )
    step = next(rows.epoch(0))
    with torch.no_grad():
        parts = [loss(line_logits(model, b.inputs), b.targets, b.counted) for b in step.micro_batches]
        ours = float(sum(parts)) / step.weight
        tokenizer = backbone.tokenizer
        words = [list(read.train.inputs[row]) for row in step.rows]
        batch = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
        labels = torch.full_like(batch["input_ids"], -100)
        for place, row in enumerate(step.rows):
            for word, tag in enumerate(read.train.labels[row]):
                labels[place, batch.word_ids(place).index(word)] = int(tag)
        theirs = float(model(**batch, labels=labels).loss)
    assert ours == pytest.approx(theirs, rel=1e-5)

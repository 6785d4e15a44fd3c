"""What is asked of runs whose words have labels: pages, comparisons, the scout, ONNX, the Hub."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import tiny
import torch
from hub_server import Hub
from run_folders import HOSTILE
from runs import Cli, metrics, predictions, write_sentences
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

import hftl
from hftl.backbones.words import EncodedSentence
from hftl.data.holdout import hold_out
from hftl.export.loaded import LoadedModel
from hftl.heads import fit_linear
from hftl.report.comparison import compare
from hftl.report.spans import Fate, judged_entities
from hftl.scout.curve import HELD_OUT, nested_order
from hftl.tagging import Tagging
from hftl.tasks import Task

DRAWS = 1500


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, two backbones, and a run of each; the second backbone knows little."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "data").mkdir()
    write_sentences(folder / "data" / "train.jsonl", 60)
    write_sentences(folder / "data" / "test.jsonl", 40, seed=1)
    tiny.save("bert", folder / "bert")
    tiny.save("distilbert", folder / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTL_CACHE", str(folder / "cache"))
        for name, strengths in (("bert", None), ("other", [300.0])):
            head = hftl.Head(folds=3, strengths=strengths)
            recipe = hftl.Recipe(backbone=str(folder / name), data=str(folder / "data"), method=head)
            hftl.run(recipe, out=folder / f"run-{name}", quiet=True)
    return folder


@pytest.fixture(autouse=True)
def cache(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFTL_CACHE", str(made / "cache"))


def entities_of(tags: list[str]) -> list[tuple[str, int, int]]:
    """Type, first and last word of each entity of BIO tags; a lone I- begins one, as for conlleval."""
    found: list[tuple[str, int, int]] = []
    for place, tag in enumerate(tags):
        if tag == "O":
            continue
        if tag[0] == "I" and place and tags[place - 1][2:] == tag[2:]:
            found[-1] = (tag[2:], found[-1][1], place)
        else:
            found.append((tag[2:], place, place))
    return found


def f1_of(true: list[list[str]], said: list[list[str]]) -> float:
    pairs = [(set(entities_of(t)), set(entities_of(s))) for t, s in zip(true, said, strict=True)]
    both = sum(len(t) + len(s) for t, s in pairs)
    return 2 * sum(len(t & s) for t, s in pairs) / both if both else 0.0


def words_of_test(made: Path) -> list[list[str]]:
    return [json.loads(line)["tokens"] for line in (made / "data" / "test.jsonl").read_text().splitlines()]


def run_with_page(cli: Cli, made: Path, data: Path) -> None:
    command = ("run", "--backbone", made / "bert", "--data", data, "--folds", "2")
    cli.ok(*command, "--out", data / "run", "--quiet", "--report")


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html)).strip()


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_became_of_an_entity_is_one_of_five_things():
    tagging = Tagging(("O", "B-a", "I-a", "B-b", "I-b"))
    true = [1, 2, 0, 3, 0, 1, 2, 0, 1, 2, 0, 3, 0]
    said = [1, 2, 0, 1, 0, 1, 0, 0, 3, 0, 0, 0, 1]
    found = judged_entities(tagging, true, said)
    assert [each.fate for each in found.true] == [Fate.RIGHT, Fate.TYPE, Fate.WORDS, Fate.BOTH, Fate.NOTHING]
    assert [each.fate for each in found.said] == [Fate.RIGHT, Fate.TYPE, Fate.WORDS, Fate.BOTH, Fate.NOTHING]
    assert found.first_mistake == 3


def test_the_page_tells_what_its_tags_and_a_bootstrap_over_sentences_tell(made: Path):
    run = made / "run-other"
    page = (run / "report.html").read_text()
    table = predictions(run)
    true, said = table["label"], table["prediction"]
    eval_ = metrics(run)["eval"]
    headline = re.search(r'<p class="headline">([\d.]+)</p>', page)
    assert headline is not None
    assert float(headline[1]) == pytest.approx(f1_of(true, said), abs=5e-5)
    interval = re.search(r"between ([\d.]+) and ([\d.]+)</p>", page)
    assert interval is not None
    draw = np.random.default_rng(5)
    drawn = []
    for _ in range(400):
        rows = draw.integers(0, len(true), len(true))
        drawn.append(f1_of([true[i] for i in rows], [said[i] for i in rows]))
    assert [float(interval[1]), float(interval[2])] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    # Each row of the table of types, counted anew from the tags.
    rows = re.findall(
        r"<tr>(<th scope=\"row\">.*?)</tr>", page.partition('id="types"')[2].partition("</table>")[0], re.S
    )
    told = {}
    for row in rows:
        name, *cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
        told[text_of(name)] = [float(text_of(cell).replace(",", "")) for cell in cells]
    assert set(told) == {"animal", "place"}
    entities = [(set(entities_of(t)), set(entities_of(s))) for t, s in zip(true, said, strict=True)]
    for kind, (f1, precision, recall, support, right, *rest) in told.items():
        there = [e for t, _ in entities for e in t if e[0] == kind]
        hits = sum(e in s for t, s in entities for e in t if e[0] == kind)
        assert (support, right) == (len(there), hits)
        assert [f1, precision, recall] == pytest.approx(
            [eval_["per_type"][kind][name] for name in ("f1", "precision", "recall")], abs=5e-4
        )
        assert right + sum(rest[:3]) == support
        apart = [e for t, s in entities for e in s if e[0] == kind and all(e[2] < o[1] or o[2] < e[1] for o in t)]
        assert rest[3] == len(apart)


def test_the_worst_sentences_show_true_and_predicted_entities_in_their_words(made: Path):
    run = made / "run-other"
    page = (run / "report.html").read_text().partition('id="worst"')[2].partition("</section>")[0]
    table, tokens = predictions(run), words_of_test(made)
    wrong = [
        i
        for i, (t, s) in enumerate(zip(table["label"], table["prediction"], strict=True))
        if entities_of(t) != entities_of(s)
    ]
    loss = {
        i: -sum(
            np.log(dict(zip(names_of(run), row, strict=True))[tag])
            for row, tag in zip(table["scores"][i], table["label"][i], strict=True)
        )
        for i in wrong
    }
    expected = sorted(wrong, key=lambda i: -loss[i])[:20]
    cards = re.findall(r'<li class="card">(.*?)</li>', page, re.S)
    assert len(cards) == len(expected)
    for card, row in zip(cards, expected, strict=True):
        assert text_of(card).endswith(table["row"][row])
        for side, tags in zip(
            re.findall(r"<dd.*?>(.*?)</dd>", card, re.S), (table["label"][row], table["prediction"][row]), strict=True
        ):
            # The words are all there, in order, and marked where the tags have an entity.
            assert text_of(re.sub(r'<span class="type">.*?</span>', "", side)).split() == tokens[row]
            marked = re.findall(r'<span class="entity(?: off)?">(.*?) <span class="type">(.*?)</span>', side, re.S)
            assert [(kind.partition(",")[0], words) for words, kind in marked] == [
                (kind, " ".join(tokens[row][start : end + 1])) for kind, start, end in entities_of(tags)
            ]


def names_of(run: Path) -> list[str]:
    config = json.loads((run / "model" / "config.json").read_text())
    return [config["id2label"][str(k)] for k in range(len(config["id2label"]))]


def test_a_page_made_again_without_what_the_run_kept_says_so_and_has_places(made: Path, cli: Cli, tmp_path: Path):
    run = tmp_path / "run-other"
    shutil.copytree(made / "run-other", run)
    before = (run / "report.html").read_text()
    cli.ok("report", run)
    assert (run / "report.html").read_text() == before
    (run / "report.json").unlink()
    cli.ok("report", run)
    page = (run / "report.html").read_text()
    assert "No words: the run kept no report.json" in page
    assert re.search(r"(animal|place): words? \d", page)


def test_a_long_sentence_is_shown_about_its_first_mistake(made: Path, cli: Cli, tmp_path: Path):
    known = [json.loads(line) for line in (made / "data" / "train.jsonl").read_text().splitlines()]
    words = [word for row in known for word in row["tokens"]]
    row = {"tokens": words, "tags": [tag for row in known for tag in row["tags"]]}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "train.jsonl").write_text((made / "data" / "train.jsonl").read_text())
    run_with_page(cli, made, tmp_path)
    page = text_of((tmp_path / "run" / "report.html").read_text().partition('id="worst"')[2].partition("</section>")[0])
    shown = json.loads((tmp_path / "run" / "report.json").read_text())["rows"][0]
    assert len(shown["words"]) == 200
    assert shown["before"] + 200 + shown["after"] == len(words)
    (true,), (said,) = (predictions(tmp_path / "run")[name] for name in ("label", "prediction"))
    differ = set(entities_of(true)) ^ set(entities_of(said))
    assert shown["before"] == max(0, min(min(first for _, first, _ in differ) - 20, len(words) - 200))
    assert shown["words"] == words[shown["before"] :][:200]
    assert (f"{shown['before']} words before … " in page) == (shown["before"] > 0)
    assert (f"… {shown['after']:,} words behind" in page) == (shown["after"] > 0)


def test_what_others_wrote_is_inert_on_the_page(made: Path, cli: Cli, tmp_path: Path):
    kinds = [f"B-{text}" for text in HOSTILE[:12]]
    with (tmp_path / "train.jsonl").open("w") as file:
        for k in range(48):
            file.write(json.dumps({"tokens": [HOSTILE[k % len(HOSTILE)], "cat"], "tags": ["O", kinds[k % 12]]}) + "\n")
    run_with_page(cli, made, tmp_path)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<script") == 1
    assert not re.search(r"<(img|iframe|form|base|link|button)\b", page)
    assert not re.search(r"<[^>]* on\w+=", page)
    assert not [c for c in page if not c.isprintable() and c not in "\n\u200c\u200d"]


# ── comparisons ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_runs_are_compared_by_a_paired_bootstrap_over_sentences(made: Path, cli: Cli, tmp_path: Path):
    folders = [made / "run-bert", made / "run-other"]
    found = compare(folders)
    tables = [predictions(run) for run in folders]
    true, (first, other) = tables[0]["label"], [table["prediction"] for table in tables]
    assert found.metric == "f1"
    assert [run.score.value for run in found.runs] == pytest.approx([f1_of(true, first), f1_of(true, other)], abs=1e-9)
    draw = np.random.default_rng(9)
    drawn = []
    for _ in range(DRAWS // 3):
        rows = draw.integers(0, len(true), len(true))
        chosen = [[tags[i] for i in rows] for tags in (true, other, first)]
        drawn.append(f1_of(chosen[0], chosen[1]) - f1_of(chosen[0], chosen[2]))
    gain = found.runs[1].against_first
    assert gain is not None
    assert [gain.low, gain.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    right = [[entities_of(t) == entities_of(s) for t, s in zip(true, said, strict=True)] for said in (first, other)]
    assert found.runs[1].only_it == sum(b and not a for a, b in zip(*right, strict=True))
    assert found.runs[1].only_first == sum(a and not b for a, b in zip(*right, strict=True))
    for each in found.outputs:
        assert each.scores == pytest.approx([metrics(run)["eval"]["per_type"][each.name]["f1"] for run in folders])
        assert each.rows == metrics(folders[0])["eval"]["per_type"][each.name]["support"]
    assert found.disagreeing == sum(entities_of(a) != entities_of(b) for a, b in zip(first, other, strict=True))
    said = cli.ok("compare", *folders)
    assert f"of {len(true)} sentences" in said
    cli.ok("report", *folders, "--out", tmp_path / "both.html")
    assert "Sentences on which they disagree" in (tmp_path / "both.html").read_text()
    assert json.loads(cli.ok("runs", made, "--json"))[0]["metric"] == "f1"


def test_runs_whose_tags_stand_in_another_order_or_differ_on_a_sentence(made: Path, cli: Cli, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(made / "run-bert", run)
    record = json.loads((run / "recipe.json").read_text())
    names = record["data"]["label_names"]
    record["data"]["label_names"] = names[::-1]
    (run / "recipe.json").write_text(json.dumps(record))
    table = pq.read_table(run / "predictions.parquet").to_pydict()
    table["scores"] = [[row[::-1] for row in rows] for rows in table["scores"]]
    # Of the other half of the rows, in another order.
    some = {name: values[::-1][:20] for name, values in table.items()}
    pq.write_table(pa.table(some), run / "predictions.parquet")
    found = compare([made / "run-bert", run])
    assert found.rows == 20
    assert found.disagreeing == 0
    assert (
        found.runs[0].score.value
        == found.runs[1].score.value
        == pytest.approx(f1_of(some["label"], some["prediction"]))
    )
    some["label"][3] = ["O"] * len(some["label"][3])
    pq.write_table(pa.table(some), run / "predictions.parquet")
    assert "1 of 20 test rows have other labels" in cli.refused("compare", made / "run-bert", run)


# ── the scout ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_backbones_are_ranked_by_entities_of_sentences_that_heads_have_not_seen(made: Path):
    recipe = hftl.Recipe(backbone=str(made / "bert"), data=str(made / "data"))
    found = hftl.rank(recipe, [str(made / "bert"), str(made / "other")], quiet=True)
    assert (found.metric, found.rows, found.failed) == ("f1", 60, [])
    features = hftl.features(recipe, quiet=True)
    x, y = features.of("train")
    rows = [json.loads(line) for line in (made / "data" / "train.jsonl").read_text().splitlines()]
    sentence = np.repeat(np.arange(60), [len(row["tokens"]) for row in rows])
    own = next(each for each in found.backbones if each.backbone == str(made / "bert"))
    names = features.label_names
    true = [row["tags"] for row in rows]

    def said_by(scores: np.ndarray) -> list[list[str]]:
        tags = [names[k] for k in scores.argmax(1)]
        return [[tags[i] for i in np.flatnonzero(sentence == s)] for s in range(60)]

    assert len(own.score.rows) == 60
    assert own.probe.value == pytest.approx(f1_of(true, said_by(own.score.scores)), abs=1e-9)
    # Near what scikit-learn's heads do in sentences that they have not seen.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
    theirs = cross_val_predict(head, x, y, groups=sentence, cv=GroupKFold(20), method="predict_proba")
    assert own.probe.value == pytest.approx(f1_of(true, said_by(theirs)), abs=0.08)
    # No word is the neighbour of one of its own sentence.
    unit = x - x.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit @ unit.T
    similarity[sentence[:, None] == sentence] = -np.inf
    nearest = np.argsort(-similarity, axis=1)[:, :20]
    weight = np.exp((np.take_along_axis(similarity, nearest, 1) - 1) / 0.07)
    shares = np.stack([(weight * (y[nearest] == k)).sum(1) for k in range(len(names))], 1)
    assert own.knn.value == pytest.approx(f1_of(true, said_by(shares)), abs=0.02)


def test_the_curve_is_of_entities_by_sentences(made: Path, cli: Cli):
    recipe = hftl.Recipe(backbone=str(made / "bert"), data=str(made / "data"))
    found = hftl.curve(recipe, seeds=1, quiet=True)
    assert (found.metric, found.rows) == ("f1", 60)
    features = hftl.features(recipe, quiet=True)
    x, y = (torch.from_numpy(each) for each in features.of("train"))
    rows = [json.loads(line) for line in (made / "data" / "train.jsonl").read_text().splitlines()]
    labels = np.empty(60, dtype=object)
    labels[:] = [np.array([features.label_names.index(tag) for tag in row["tags"]]) for row in rows]
    pool, held = hold_out(labels, Task.TOKEN_LABELS, HELD_OUT, recipe.seed)
    order = pool[nested_order(labels[pool], Task.TOKEN_LABELS, recipe.seed)]
    sentence = np.repeat(np.arange(60), [len(row["tokens"]) for row in rows])
    # The largest part, all of the pool: any order of its words gives one head, but for the strength.
    some = np.isin(sentence, order)
    strengths = np.logspace(-3, 3, 7).tolist()
    fit = fit_linear(
        x[some],
        y[some],
        task="single_label",
        num_labels=len(features.label_names),
        strengths=strengths,
        groups=torch.from_numpy(sentence[some]),
        calibrate=False,
    )
    said = [features.label_names[k] for k in fit.logits(x).argmax(1).tolist()]
    tags = [[said[i] for i in np.flatnonzero(sentence == s)] for s in held]
    assert found.points[-1].rows == len(pool)
    assert found.points[-1].score.value == pytest.approx(f1_of([rows[s]["tags"] for s in held], tags), abs=0.1)
    for question in ("layers", "transfer", "audit", "advise"):
        assert "for whole rows only" in cli.refused(question, str(made / "run-bert" / "recipe.json"))


# ── exports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_onnx_folder_gives_the_models_logits_and_is_asked_as_a_model_is(made: Path, cli: Cli, tmp_path: Path):
    import onnxruntime

    run, folder = made / "run-bert", tmp_path / "onnx"
    facts = json.loads(cli.ok("export", run, "--onnx", "--out", folder, "--json"))
    assert facts["metric"] == "f1"
    assert facts["before"] == pytest.approx(metrics(run)["eval"]["f1"], abs=1e-9)
    assert facts["rows"] == len(predictions(run)["row"])
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    network = AutoModelForTokenClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokens = words_of_test(made)
    for rows in (tokens[:1], tokens[1:6]):
        batch = tokenizer(rows, is_split_into_words=True, padding=True, return_tensors="pt")
        given = {each.name: batch[each.name].numpy() for each in session.get_inputs()}
        (found,) = session.run(["logits"], given)
        with torch.no_grad():
            np.testing.assert_allclose(found, network(**batch).logits.numpy(), atol=1e-4)
    ours, theirs = hftl.load(run).predict(tokens), hftl.load(folder).predict(tokens)
    assert [row["tags"] for row in theirs] == [row["tags"] for row in ours]
    again = hftl.evaluate(folder, str(made / "data"), quiet=True)
    assert again["f1"] == pytest.approx(metrics(run)["eval"]["f1"], abs=1e-9)
    left = runs.card_example(folder, {"some text": "the red cat sat"})
    assert len(left["first"]) == 4
    long = hftl.load(run).predict(long_sentences())
    assert read_in_windows(folder, tmp_path / "long.jsonl") == [row["tags"] for row in long]


def test_an_onnx_file_of_8_bits_says_what_it_costs_and_reads_long_sentences(made: Path, cli: Cli, tmp_path: Path):
    run, folder = made / "run-bert", tmp_path / "int8"
    facts = json.loads(cli.ok("export", run, "--onnx", "--int8", "--out", folder, "--json"))
    assert facts["before"] == pytest.approx(metrics(run)["eval"]["f1"], abs=1e-9)
    measured = hftl.evaluate(folder, str(made / "data" / "test.jsonl"), quiet=True)
    assert measured["f1"] == pytest.approx(facts["after"], abs=1e-9)
    read_in_windows(folder, tmp_path / "long.jsonl")


def read_in_windows(folder: Path, data: Path) -> list[list[str]]:
    """The tags that an ONNX folder gives sentences longer than the 32 tokens that it reads, seen to be the file's own.

    Each word is asked of onnxruntime where it is read, the windows of its sentence being one batch.
    """
    import onnxruntime

    sentences = long_sentences()
    tags = [["B-animal" if word in ("cat", "dog", "bird") else "O" for word in words] for words in sentences]
    rows = zip(sentences, tags, strict=True)
    data.write_text("\n".join(json.dumps({"tokens": words, "tags": each}) for words, each in rows))
    model = LoadedModel.load(folder)
    said = [row["tags"] for row in hftl.load(folder).predict(sentences)]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    asked = {each.name for each in session.get_inputs()}
    for words, tags_said in zip(sentences, said, strict=True):
        (sentence,) = model.backbone.encode([tuple(words)], ["row"])
        assert isinstance(sentence, EncodedSentence)
        assert (len(sentence.windows) > 1) == (len(words) > 30)
        given = {name: np.array([window[name] for window in sentence.windows]) for name in asked}
        (logits,) = session.run(["logits"], given)
        found = [int(logits[window][place].argmax()) for window, place in sentence.words]
        assert [model.label_names[tag] for tag in found] == tags_said
    scores = hftl.evaluate(folder, str(data), quiet=True)
    assert scores["f1"] == pytest.approx(f1_of(tags, said), abs=1e-9)
    return said


def long_sentences() -> list[list[str]]:
    draw = np.random.default_rng(0)
    return [draw.choice(tiny.WORDS, length).tolist() for length in (80, 3, 47, 120)]


def test_a_run_goes_to_the_hub_and_comes_back_as_what_it_was(made: Path, tmp_path: Path):
    run = made / "run-bert"
    with Hub() as hub:
        hub.user("me", "hf_me")
        line = [sys.executable, "-m", "hftl", "push", str(run), "me/names"]
        done = subprocess.run(line, env=hub.environment(tmp_path, "hf_me"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        files = hub.repos["models", "me/names"].head.files
        assert "pipeline_tag: token-classification" in files["README.md"].content.decode()
        assert 'model="me/names"' in files["README.md"].content.decode()
        for name, file in files.items():
            (tmp_path / "names").mkdir(exist_ok=True)
            (tmp_path / "names" / name).write_bytes(file.content)
    find = pipeline("token-classification", model=str(tmp_path / "names"), aggregation_strategy="simple")
    ours = hftl.load(run)
    kinds: Counter[str] = Counter()
    for row in words_of_test(made)[:10]:
        said = ours.predict(" ".join(row))["entities"]
        assert [(each["label"], each["start"], each["end"]) for each in said] == [
            (each["entity_group"], each["start"], each["end"]) for each in find(" ".join(row))
        ]
        kinds.update(each["label"] for each in said)
    assert len(kinds) == 2

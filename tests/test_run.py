"""The main job: what a run leaves behind is right, standard, reused, and repeatable."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import transformers
from PIL import Image
from runs import RECIPES, metrics, predictions
from sklearn.metrics import f1_score

from hftl import samples
from hftl.backbones import vision

# Twins of what is run here; HFTL_LONG=1 runs them too.
LONG = bool(os.environ.get("HFTL_LONG"))
RECIPE = '''"""A recipe of a test.   hftl run here.py"""
from hftl import Head, Recipe, recipe


@recipe
def here() -> Recipe:
    return Recipe(backbone={backbone!r}, data={data!r}, method=Head(folds=3))
'''


def write_recipe(folder: Path, backbone: Path, data: Path) -> Path:
    path = folder / "here.py"
    path.write_text(RECIPE.format(backbone=str(backbone), data=str(data)))
    return path


def in_plain_transformers(task: str, model: Path, inputs: list, **options) -> list[dict[str, float]]:
    """Scores by label from a process that never imports hftl."""
    code = (
        "import json, sys\n"
        "from transformers import pipeline\n"
        "task, model, inputs, options = json.load(sys.stdin)\n"
        "found = pipeline(task, model=model)(inputs, top_k=1000, **options)\n"
        "assert 'hftl' not in sys.modules\n"
        "print('FOUND', json.dumps([{f['label']: f['score'] for f in row} for row in found]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([task, str(model), inputs, options]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("FOUND", 1)[1])


def assert_same_predictions(run: Path, scores: list[dict[str, float]]) -> None:
    mine = predictions(run)
    names = sorted(scores[0])
    table = np.array([[row[name] for name in names] for row in scores])
    assert [names[i] for i in table.argmax(1)] == mine["prediction"]
    config = json.loads((run / "model" / "config.json").read_text())
    order = [config["id2label"][str(i)] for i in range(len(names))]
    expected = np.array([[row[name] for name in order] for row in scores])
    np.testing.assert_allclose(np.array(mine["scores"]), expected, atol=1e-5)


def test_digits_end_to_end(cli, tmp_path: Path):
    out = cli.ok("run", RECIPES / "digits.py", "--out", "run")
    assert "accuracy" in out
    assert out.strip().splitlines()[-1].split() == ["run", "run"]
    found = metrics(Path("run"))
    assert found["features"]["rows"] == found["features"]["computed"] == 1797
    assert found["eval"]["accuracy"] > 0.95
    assert {"extract", "train", "total"} <= found["seconds"].keys()
    rows = samples.DATASETS["digits"]()["test"]
    assert predictions(Path("run"))["label"] == [row.label for row in rows]
    for i, row in enumerate(rows):
        Image.open(io.BytesIO(row.encoded)).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(len(rows))]
    assert_same_predictions(Path("run"), in_plain_transformers("image-classification", Path("run/model"), paths))
    recipe = json.loads(Path("run/recipe.json").read_text())
    assert recipe["recipe"]["backbone"] == "hftl/glyph-vit-tiny"
    assert recipe["versions"]["torch"]
    events = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] != "strength"] == ["features", "eval"]


@pytest.mark.parametrize(
    ("name", "pairs"), [("bert", True), ("llama", False), *([("bert", False), ("llama", True)] if LONG else [])]
)
def test_texts_end_to_end(cli, tmp_path: Path, name: str, pairs: bool):
    backbone = tiny.save(name, tmp_path / "backbone")
    data = runs.write_texts(tmp_path / "data.csv", 1000, pairs=pairs)
    cli.ok("run", write_recipe(tmp_path, backbone, data), "--out", "run")
    found = metrics(Path("run"))
    assert found["eval"]["accuracy"] > 0.8
    # The sentences are built of few words, so that many are equal: equal rows are computed once.
    assert 0 < found["features"]["computed"] < found["features"]["rows"] == 1000
    lines = [line.rsplit(",", 1)[0].split(",") for line in data.read_text().splitlines()[1:]]
    kept = [int(row.split(" row ")[1]) - 1 for row in predictions(Path("run"))["row"]]
    inputs = [{"text": lines[i][0], "text_pair": lines[i][1]} if pairs else lines[i][0] for i in kept]
    assert_same_predictions(Path("run"), in_plain_transformers("text-classification", Path("run/model"), inputs))


@pytest.mark.parametrize(
    "name", ["roberta", "xlnet", "bart", *(["distilbert", "deberta-v2", "modernbert-mean"] if LONG else [])]
)
def test_heads_that_are_not_linear_are_trained_whole(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    import torch

    backbone = tiny.save(name, tmp_path / "backbone")
    data = runs.write_texts(tmp_path / "data.csv", 300)
    recipe = write_recipe(tmp_path, backbone, data)
    cli.ok("run", recipe, "--out", "cold")
    assert metrics(Path("cold"))["head"]["kind"] == "native"
    assert metrics(Path("cold"))["eval"]["accuracy"] > 0.8
    lines = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
    mine = predictions(Path("cold"))
    texts = [lines[int(row.split(" row ")[1]) - 1] for row in mine["row"]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained("cold/model").eval()
    batch = transformers.AutoTokenizer.from_pretrained("cold/model")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(**batch).logits.softmax(1).numpy()
    np.testing.assert_allclose(np.array(mine["scores"]), scores, atol=1e-5)

    only_exports_are_read(monkeypatch, backbone)
    cli.ok("run", recipe, "--out", "warm")
    assert Path("cold/model/model.safetensors").read_bytes() == Path("warm/model/model.safetensors").read_bytes()


@pytest.mark.parametrize("task", ["multi_label", "one target", "two targets"])
@pytest.mark.parametrize("name", ["bert", "roberta"], ids=["linear", "native"])
def test_other_tasks_give_the_same_numbers_in_plain_transformers(cli, tmp_path: Path, name: str, task: str):
    import torch

    backbone = tiny.save(name, tmp_path / "backbone")
    source = runs.write_texts(tmp_path / "texts.csv", 200).read_text().splitlines()[1:]
    texts = [line.rsplit(",", 1)[0] for line in source]
    noise = np.random.default_rng(0).normal(size=(len(texts), 2))
    numbers = [[len(text) / 10 + a, ("red" in text) + b] for text, (a, b) in zip(texts, noise.tolist(), strict=True)]
    columns = {
        "multi_label": ("label", [[w for w in ("cat", "dog", "red", "ran") if w in text.split()] for text in texts]),
        "one target": ("label", [first for first, _ in numbers]),
        "two targets": ("label", numbers),
    }
    column, values = columns[task]
    rows = [{"text": text, column: value} for text, value in zip(texts, values, strict=True)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("--task", "multi_label" if task == "multi_label" else "regression")
    cli.ok("run", write_recipe(tmp_path, backbone, data), "--out", "run", *more)
    mine = predictions(Path("run"))
    held = [texts[int(row.split(" row ")[1]) - 1] for row in mine["row"]]
    model = transformers.AutoModelForSequenceClassification.from_pretrained("run/model").eval()
    batch = transformers.AutoTokenizer.from_pretrained("run/model")(held, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    if task == "multi_label":
        assert model.config.problem_type == "multi_label_classification"
        np.testing.assert_allclose(np.array(mine["scores"]), logits.sigmoid().numpy(), atol=1e-5)
        assert metrics(Path("run"))["head"]["calibration"]["folded"]
        assert_decided_by_thresholds(cli, model.config, mine, held)
    else:
        assert model.config.problem_type == "regression"
        found = np.array(mine["prediction"]).reshape(logits.shape)
        np.testing.assert_allclose(found, logits.numpy(), atol=1e-5)


def assert_decided_by_thresholds(cli, config, mine: dict[str, list], texts: list[str]) -> None:
    """File, metrics, `predict` and `evaluate` decide by the thresholds that the model's own files state."""
    report = metrics(Path("run"))
    assert config.thresholds == report["head"]["thresholds"]
    names = [config.id2label[number] for number in range(len(config.id2label))]
    decided = np.array(mine["scores"]) > config.thresholds
    assert mine["prediction"] == [[n for n, there in zip(names, row, strict=True) if there] for row in decided]
    truth = np.array([[n in labels for n in names] for labels in mine["label"]])
    assert report["eval"]["f1_macro"] == pytest.approx(f1_score(truth, decided, average="macro", zero_division=0))
    at_half = f1_score(truth, np.array(mine["scores"]) > 0.5, average="macro", zero_division=0)
    assert report["eval"]["at_half"]["f1_macro"] == pytest.approx(at_half)
    lines = cli.ok("predict", "run", *texts[:5], "--json").splitlines()
    assert [json.loads(line)["label"] for line in lines] == mine["prediction"][:5]


def test_a_precision_that_is_asked_for_decides_and_labels_that_cannot_reach_it_are_named(cli, tmp_path: Path):
    backbone = tiny.save("bert", tmp_path / "backbone")
    rows = [
        {
            "text": f"the {'cat' if i % 3 else 'dog'} sat under tree {i}",
            "labels": ["cat"] * (i % 3 > 0) + ["odd"] * (i % 2),
        }
        for i in range(90)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(tmp_path, backbone, data)

    out = cli.ok("run", recipe, "--out", "run", "--task", "multi_label", "--at-precision", "0.9")

    report, config = metrics(Path("run"))["head"], json.loads(Path("run/model/config.json").read_text())
    assert report["thresholds_for"] == "precision 0.9"
    assert [config["id2label"][str(label)] for label in report["not_reached"]] == ["odd"]
    assert "'odd': no threshold reaches precision 0.9" in out
    assert config["thresholds"] == report["thresholds"]
    mine = predictions(Path("run"))
    decided = [
        [n for n, s, t in zip(["cat", "odd"], row, config["thresholds"], strict=True) if s > t]
        for row in mine["scores"]
    ]
    assert mine["prediction"] == decided
    card = Path("run/model/README.md").read_text()
    assert "for a precision 0.9" in card
    assert "where no threshold reaches that: odd" in card
    assert "--validation-size" in cli.refused(
        "run", recipe, "--task", "multi_label", "--method", "full", "--at-recall", "0.9", "--out", "no"
    )
    assert "not both" in cli.refused("run", recipe, "--at-recall", "0.9", "--at-precision", "0.9")
    images = runs.write_images(tmp_path / "images")
    assert "several labels" in cli.refused(
        "run", write_recipe(tmp_path, tiny.save("vit", tmp_path / "vit"), images), "--at-recall", "0.9", "--out", "no"
    )


def test_a_head_on_two_tokens_of_an_image(cli, tmp_path: Path):
    backbone = tiny.save("deit-distilled", tmp_path / "backbone", head=True)
    data = runs.write_images(tmp_path / "data")
    cli.ok("run", write_recipe(tmp_path, backbone, data), "--out", "run")
    paths = [str(data / row) for row in predictions(Path("run"))["row"]]
    found = transformers.pipeline("image-classification", model="run/model")(paths, top_k=1000)
    assert_same_predictions(Path("run"), [{f["label"]: f["score"] for f in row} for row in found])


def test_damaged_features_are_computed_again(cli, tmp_path: Path):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    cli.ok("run", recipe, "--out", "first")
    (shard,) = (tmp_path / "hftl-cache" / "features").glob("*/shards/*.safetensors")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    cli.ok("run", recipe, "--out", "second")
    assert metrics(Path("second"))["features"]["computed"] == 18
    assert predictions(Path("first")) == predictions(Path("second"))


def only_exports_are_read(patched: pytest.MonkeyPatch, backbone: Path) -> None:
    """The proof of an export loads what was exported; nothing may load the pretrained weights."""
    read = transformers.PreTrainedModel.from_pretrained.__func__

    def from_pretrained(cls, where, *args, **kwargs):
        assert Path(where).resolve() != backbone.resolve(), "the weights were read"
        return read(cls, where, *args, **kwargs)

    patched.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(from_pretrained))


def test_a_second_run_computes_nothing_and_reads_no_weights(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    cli.ok("run", recipe, "--out", "first")

    def refuse(*args, **kwargs):
        raise AssertionError("a picture was prepared for the backbone")

    with monkeypatch.context() as patched:
        only_exports_are_read(patched, backbone)
        patched.setattr(vision, "decode_image", refuse)
        cli.ok("run", recipe, "--out", "second")
        cli.ok("run", recipe, "--out", "third", "--folds", "2", "--set", "method.strengths=[1,10]", "--seed", "3")
    for run, computed in (("first", 18), ("second", 0), ("third", 0)):
        assert metrics(Path(run))["features"]["computed"] == computed
        assert metrics(Path(run))["features"]["reused"] == 18 - computed
    first, second = (Path(run, "model", "model.safetensors").read_bytes() for run in ("first", "second"))
    assert first == second


def test_exactly_what_changed_is_computed_again(cli, tmp_path: Path):
    backbone = tiny.save("vit", tmp_path / "backbone")
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, backbone, data)
    count = iter(range(100))

    def computed(*flags: str) -> int:
        out = f"run{next(count)}"
        cli.ok("run", recipe, "--out", out, *flags)
        return metrics(Path(out))["features"]["computed"]

    assert computed() == 18
    image = data / "class1" / "0.png"
    Image.open(image).rotate(90).save(image)
    assert computed() == 1
    shutil.copy(image, data / "class1" / "copy.png")
    assert computed() == 0, "a copy has the same content"
    shutil.move(backbone, tmp_path / "elsewhere")
    assert computed("--backbone", str(tmp_path / "elsewhere")) == 0, "a folder's name is not its identity"
    shutil.move(tmp_path / "elsewhere", backbone)
    processor = backbone / "preprocessor_config.json"
    settings = json.loads(processor.read_text())
    settings["image_mean"] = [0.4, 0.4, 0.4]
    processor.write_text(json.dumps(settings))
    assert computed() == 18, "the processor changed (its 19th row is a copy)"
    tiny.save("vit", backbone, seed=1)
    processor.write_text(json.dumps(settings))
    assert computed() == 18, "the weights changed"


def test_pooled_heads_are_exported_for_sentence_transformers(cli, tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    backbone = tiny.save("bert", tmp_path / "backbone")
    data = runs.write_texts(tmp_path / "data.csv", 200)
    recipe = write_recipe(tmp_path, backbone, data)
    cli.ok("run", recipe, "--out", "native")
    assert "pooling" in cli.refused("run", recipe, "--out", "refused", "--hidden", "16")
    for pooling, *hidden in (("mean",), ("cls",), ("mean", "--hidden", "16")):
        shutil.rmtree(pooling, ignore_errors=True)
        cli.ok("run", recipe, "--out", pooling, "--pooling", pooling, *hidden)
        reused = metrics(Path(pooling))["features"]["computed"] == 0
        assert reused == (pooling == "cls" or bool(hidden)), "one pass of the body stores every pooling of it"
        assert (metrics(Path(pooling))["head"]["kind"] == "mlp") == bool(hidden)
        lines = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
        mine = predictions(Path(pooling))
        texts = [lines[int(row.split(" row ")[1]) - 1] for row in mine["row"]]
        logits = SentenceTransformer(str(Path(pooling, "model").absolute()), device="cpu").encode(texts)
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(np.array(mine["scores"]), scores, atol=1e-5)


def test_one_seed_gives_one_result(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("resnet", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    for run in ("one", "two"):
        monkeypatch.setenv("HFTL_CACHE", str(tmp_path / f"cache-{run}"))
        cli.ok("run", recipe, "--out", run)
    one, two = (metrics(Path(run)) for run in ("one", "two"))
    del one["seconds"], two["seconds"]
    assert one == two
    assert Path("one/model/model.safetensors").read_bytes() == Path("two/model/model.safetensors").read_bytes()


def test_weights_of_half_precision_are_exported_as_they_were_used(cli, tmp_path: Path):
    import torch

    backbone = tiny.save("vit", tmp_path / "backbone", dtype=torch.float16)
    data = runs.write_images(tmp_path / "data")
    cli.ok("run", write_recipe(tmp_path, backbone, data), "--out", "run")
    paths = [str(data / row) for row in predictions(Path("run"))["row"]]
    assert_same_predictions(Path("run"), in_plain_transformers("image-classification", Path("run/model"), paths))


def test_two_processes_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone = tiny.save("vit", tmp_path / "backbone")
    recipe = write_recipe(tmp_path, backbone, runs.write_images(tmp_path / "data"))
    command = [sys.executable, "-m", "hftl", "run", str(recipe), "--out", str(tmp_path / "run"), "--num-processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("backbone  ") == 1, "only the main process speaks"
    assert metrics(tmp_path / "run")["features"] | {"space": ""} == {
        "rows": 18,
        "computed": 18,
        "reused": 0,
        "truncated": 0,
        "space": "",
    }


@pytest.mark.parametrize("wrong", ["recipe", "row", *(["data"] if LONG else [])])
def test_an_error_that_all_processes_meet_is_said_once(tmp_path: Path, wrong: str):
    data = runs.write_images(tmp_path / "data")
    recipe = write_recipe(tmp_path, tiny.save("vit", tmp_path / "backbone"), data)
    if wrong == "row":
        (data / "class0" / "bad.png").write_bytes(b"no image")
    named = ["absent.py"] if wrong == "recipe" else [str(recipe), *(["--data", "absent"] if wrong == "data" else [])]
    command = [sys.executable, "-m", "hftl", "run", *named, "--out", str(tmp_path / "run"), "--num-processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("hftl: ")]
    assert len(said) == 1, done.stderr
    assert ("bad.png" if wrong == "row" else "absent") in said[0]


def test_predict(cli, tmp_path: Path):
    backbone = tiny.save("vit", tmp_path / "backbone")
    data = runs.write_images(tmp_path / "data")
    cli.ok("run", write_recipe(tmp_path, backbone, data), "--out", "run")
    mine = predictions(Path("run"))
    rows = [json.loads(line) for line in cli.ok("predict", "run", data, "--json").splitlines()]
    by_name = {str(Path(row["input"]).relative_to(data)): row for row in rows}
    assert len(rows) == 18
    for name, label, score in zip(mine["row"], mine["prediction"], mine["score"], strict=True):
        assert by_name[name]["label"] == label
        assert by_name[name]["score"] == pytest.approx(score, abs=1e-5)
    assert "class0" in cli.ok("predict", "run/model", data / "class0" / "0.png")
    (data / "class0" / "bad.png").write_bytes(b"no image")
    assert "bad.png" in cli.refused("predict", "run", data, "--on-bad-row", "error")
    rows = [json.loads(line) for line in cli.ok("predict", "run", data, "--json").splitlines()]
    assert "1 of 19 rows could not be read" in cli.err
    assert [row["label"] for row in rows if row["input"].endswith("bad.png")] == [None]
    assert "no trained head" in cli.refused("predict", backbone, data)


def test_evaluate_on_other_data(cli, tmp_path: Path):
    backbone = tiny.save("vit", tmp_path / "backbone")
    data = runs.write_images(tmp_path / "data")
    cli.ok("run", write_recipe(tmp_path, backbone, data), "--out", "run")
    other = runs.write_images(tmp_path / "other", per_class=4, seed=5)
    found = json.loads(cli.ok("evaluate", "run", "--data", other, "--json"))
    files = sorted(str(path) for path in other.rglob("*.png"))
    rows = [json.loads(line) for line in cli.ok("predict", "run", *files, "--json").splitlines()]
    right = [row["label"] == Path(row["input"]).parent.name for row in rows]
    assert len(rows) == 12, "data without a split are evaluated whole"
    assert found["accuracy"] == pytest.approx(np.mean(right))
    assert "accuracy" in cli.ok("evaluate", "run", "--data", other)
    (other / "class2").rename(other / "unheard")
    assert "'unheard'" in cli.refused("evaluate", "run", "--data", other)


def test_the_banking77_recipe_with_a_tiny_encoder(cli, tmp_path: Path):
    backbone = tiny.save("bert", tmp_path / "backbone")
    data = runs.write_texts(tmp_path / "data.csv", 200)
    cli.ok("run", RECIPES / "banking77.py", "--backbone", backbone, "--data", data, "--out", "run")
    assert json.loads(Path("run/recipe.json").read_text())["recipe"]["method"]["pooling"] == "mean"
    assert (Path("run/model") / "modules.json").exists()
    mine = predictions(Path("run"))
    lines = [line.rsplit(",", 1)[0] for line in data.read_text().splitlines()[1:]]
    texts = [lines[int(row.split(" row ")[1]) - 1] for row in mine["row"]]
    rows = [json.loads(line) for line in cli.ok("predict", "run", *texts, "--json").splitlines()]
    np.testing.assert_allclose([list(row["scores"].values()) for row in rows], mine["scores"], atol=1e-5)

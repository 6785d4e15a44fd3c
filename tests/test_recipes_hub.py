"""Recipes whose backbone and data come from a Hub and whose model goes there: no flag names a local file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hub_client import Client, execute, hftl
from hub_content import (
    BERT,
    FLOWERS,
    REVIEWS,
    VIT,
    add_beans,
    add_dinov2,
    add_table,
    add_usual,
    flower_table,
    sentences,
)
from hub_server import Hub
from huggingface_hub import ModelCard
from safetensors.torch import load
from test_card import HOSTILE

TOKEN = "hf_canary_9876543210"
RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("content")
    with Hub() as running:
        running.user("me", TOKEN)
        add_usual(running, folder)
        add_dinov2(running, folder / "dinov2")
        add_beans(running, folder)
        yield running


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def client(hub: Hub, work: Path) -> Iterator[Client]:
    with Client(hub, work, TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def others(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Somebody else's process, with empty caches; it never imports hftl."""
    with Client(hub, tmp_path_factory.mktemp("others"), TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def runs(hub: Hub, client: Client, work: Path) -> dict[str, Path]:
    """Runs that were pushed: images, their LoRA, texts, texts with mean pooling, and another recipe."""
    flags = {
        "flowers": [],
        "lora": ["--method", "lora", "--epochs", 1],
        "reviews": ["--backbone", BERT, "--data", REVIEWS],
        "pooled": ["--backbone", BERT, "--data", REVIEWS, "--pooling", "mean"],
        "beans": [],
    }
    for name, more in flags.items():
        recipe = "dinov2_beans.py" if name == "beans" else "vit_flowers.py"
        arguments = [RECIPES / recipe, "--out", work / name, "--push", f"me/{name}", *more]
        status, out, err = client(hftl, "run", *arguments)
        assert status == 0, err
        commit = hub.repos["models", f"me/{name}"].head.sha
        assert out.splitlines()[-1] == f"pushed    {hub.url}/me/{name}/commit/{commit}"
    return {name: work / name for name in flags}


def card(hub: Hub, name: str) -> ModelCard:
    return ModelCard(hub.repos["models", f"me/{name}"].head.files["README.md"].content.decode())


def blocks(hub: Hub, name: str) -> list[str]:
    """The card's Python blocks: how to use the model, and the recipe."""
    return re.findall(r"^```python\n(.*?)^```", card(hub, name).text, re.MULTILINE | re.DOTALL)


def same(run: Path, answers: list[list[dict[str, Any]]]) -> None:
    """Assert that a pipeline gives the run's predictions: labels and every score."""
    names = list(json.loads((run / "recipe.json").read_text())["data"]["label_names"])
    mine = pq.read_table(run / "predictions.parquet").to_pydict()
    scores = [{answer["label"]: answer["score"] for answer in row} for row in answers]
    assert [max(row, key=row.__getitem__) for row in scores] == mine["prediction"]
    np.testing.assert_allclose([[row[name] for name in names] for row in scores], mine["scores"], atol=1e-5)


FLOWER_IMAGES = [row["bytes"] for row in flower_table("test", 20).with_format("arrow")[:]["image"].to_pylist()]
ASK_FOR_ALL = """
import io
from PIL import Image
inputs = [Image.open(io.BytesIO(row)) if isinstance(row, bytes) else row for row in INPUTS]
answers = classify(inputs, top_k=100)
"""


def review_texts(run: Path, hub: Hub) -> list[str]:
    """The texts of the test split, by the names of the rows."""
    lines = hub.repos["datasets", REVIEWS].head.files["train.csv"].content.decode().splitlines()[1:]
    rows = pq.read_table(run / "predictions.parquet")["row"].to_pylist()
    return [lines[int(row.rsplit(" ", 1)[1]) - 1].split(",")[0] for row in rows]


@pytest.mark.parametrize(("name", "task"), [("flowers", "image-classification"), ("reviews", "text-classification")])
def test_another_process_with_empty_caches_gets_the_run_s_predictions(
    hub: Hub, runs: dict[str, Path], others: Client, name: str, task: str
) -> None:
    inputs = FLOWER_IMAGES if name == "flowers" else review_texts(runs[name], hub)
    source = (
        f"from transformers import pipeline\nclassify = pipeline({task!r}, model='me/{name}')\nINPUTS = {inputs!r}\n"
    )
    (answers,) = others(execute, source + ASK_FOR_ALL, "answers")
    same(runs[name], answers)


@pytest.mark.parametrize("name", ["flowers", "lora", "reviews"])
def test_the_card_s_example_runs_as_it_is_and_gives_the_run_s_predictions(
    hub: Hub, runs: dict[str, Path], others: Client, tmp_path: Path, name: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(FLOWER_IMAGES[0])
    inputs = review_texts(runs[name], hub) if name == "reviews" else FLOWER_IMAGES
    example = blocks(hub, name)[0]
    assert f'"me/{name}"' in example
    source = f"import os\nos.chdir({str(tmp_path)!r})\n{example}\nINPUTS = {inputs!r}\n"
    (answers,) = others(execute, source + ASK_FOR_ALL, "answers")
    same(runs[name], answers)


def test_the_card_s_example_of_a_pooled_head_gives_the_run_s_predictions(
    hub: Hub, runs: dict[str, Path], others: Client
) -> None:
    told = card(hub, "pooled")
    assert told.data.library_name == "sentence-transformers"
    inputs = review_texts(runs["pooled"], hub)
    source = blocks(hub, "pooled")[0].replace('["some text"]', repr(inputs))
    logits, labels = others(execute, source, "logits", "labels")
    expected = pq.read_table(runs["pooled"] / "predictions.parquet").to_pydict()
    assert [labels[i] for i in logits.argmax(1)] == expected["prediction"]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(1, keepdims=True), expected["scores"], atol=1e-5)


def test_hftl_asks_a_pooled_head_here_and_on_the_hub(runs: dict[str, Path], client: Client) -> None:
    answers = []
    for model in (runs["pooled"], "me/pooled"):
        status, out, err = client(hftl, "predict", model, "a good film", "--json")
        assert status == 0, err
        answers.append(json.loads(out))
    assert answers[0] == answers[1]
    assert set(answers[0]["scores"]) == set(pq.read_table(runs["pooled"] / "predictions.parquet")["label"].to_pylist())


def test_the_beans_recipe_reads_the_splits_and_columns_of_the_real_set(hub: Hub, runs: dict[str, Path]) -> None:
    made = json.loads((runs["beans"] / "recipe.json").read_text())["data"]
    assert made["identity"]["columns"] == {"inputs": ["image"], "labels": ["labels"]}
    assert made["rows"] == {"train": 30, "validation": 12, "test": 12}
    # Without a licence in the backbone's card, the one that the registry knows.
    assert card(hub, "beans").data.license == "apache-2.0"


def test_hostile_label_names_pass_through_a_run_unchanged_and_reach_no_terminal(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    add_table(hub, "someone/hostile", {"text": sentences(3 * len(HOSTILE)), "label": HOSTILE * 3})
    arguments = ["--backbone", BERT, "--data", "someone/hostile", "--push", "me/hostile", "--out", tmp_path / "run"]
    status, out, err = client(hftl, "run", RECIPES / "vit_flowers.py", *arguments)
    assert status == 0, err
    predicted, rows, _ = client(hftl, "predict", tmp_path / "run", "good film", *["bad plot"] * 3)
    assert predicted == 0
    assert [c for c in out + err + rows if not (c.isprintable() or c in "\n\r")] == []
    files = hub.repos["models", "me/hostile"].head.files
    config = json.loads(files["config.json"].content)
    assert sorted(config["id2label"].values()) == sorted(HOSTILE)
    assert all(config["id2label"][str(number)] == name for name, number in config["label2id"].items())
    assert set(pq.read_table(tmp_path / "run" / "predictions.parquet")["label"].to_pylist()) == set(HOSTILE)
    assert set(files) >= {"README.md", "config.json", "model.safetensors"}
    assert not [name for name in files if ".." in name]


def test_a_pickle_gives_the_same_model_if_it_is_asked_for_and_the_card_says_so(
    hub: Hub, runs: dict[str, Path], client: Client, tmp_path: Path
) -> None:
    files = {path: blob.content for path, blob in hub.repos["models", VIT].head.files.items()}
    torch.save(load(files.pop("model.safetensors")), tmp_path / "pytorch_model.bin")
    hub.add("someone/pickled", files | {"pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
    arguments = ["run", RECIPES / "vit_flowers.py", "--backbone", "someone/pickled", "--out", tmp_path / "run"]
    status, _, err = client(hftl, *arguments)
    assert (status, "--allow-pickle" in err) == (2, True)
    status, _, err = client(hftl, *arguments, "--allow-pickle")
    assert status == 0, err
    first, again = (
        json.loads((run / "metrics.json").read_text())["eval"] for run in (runs["flowers"], tmp_path / "run")
    )
    assert again == first
    assert "published as a pickle" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_code_of_a_repository_is_never_fetched_nor_run(hub: Hub, client: Client, tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    code = f"open({str(tmp_path / 'exploded')!r}, 'w')".encode()
    files = {"config.json": json.dumps(config).encode(), "own.py": code, "model.safetensors": b""}
    hub.add("evil/own", files)
    status, _, err = client(
        hftl, "run", RECIPES / "vit_flowers.py", "--backbone", "evil/own", "--out", tmp_path / "run"
    )
    assert status == 2
    assert "needs Python code of its own repository, which hftl does not run" in err.splitlines()[-1]
    assert hub.count("GET", "own.py") == 0
    assert not (tmp_path / "exploded").exists()


KINDS = {
    "tags": {"text": sentences(24), "labels": [[["a", "b"], ["a"], ["c"], []][i % 4] for i in range(24)]},
    "stars": {"text": sentences(24), "stars": [0.5 * (i % 7) for i in range(24)]},
    "pairs": {"question": sentences(24), "answer": sentences(24)[::-1], "label": ["yes", "no"] * 12},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_s_example_fits_every_kind_of_task(
    hub: Hub, client: Client, others: Client, tmp_path: Path, kind: str
) -> None:
    columns = KINDS[kind]
    add_table(hub, f"someone/{kind}", columns)
    arguments = ["--backbone", BERT, "--data", f"someone/{kind}", "--push", f"me/{kind}", "--out", tmp_path / "run"]
    more = ["--input-columns", "question,answer"] if kind == "pairs" else []
    status, _, err = client(hftl, "run", RECIPES / "vit_flowers.py", *arguments, *more)
    assert status == 0, err
    inputs: list[Any] = columns.get("text", [])
    if kind == "pairs":
        inputs = [{"text": q, "text_pair": a} for q, a in zip(columns["question"], columns["answer"], strict=True)]
    example = blocks(hub, kind)[0]
    (answers,) = others(execute, f"{example}\nanswers = classify({inputs!r}, top_k=None)\n", "answers")
    mine = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    names = json.loads((tmp_path / "run" / "recipe.json").read_text())["data"]["label_names"]
    found = [[next(a["score"] for a in row if a["label"] == name) for name in names] for row in answers]
    expected = np.array(mine["prediction" if kind == "stars" else "scores"]).reshape(24, -1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_kernel_that_a_configuration_names_is_never_fetched(
    hub: Hub, client: Client, tmp_path: Path, key: str
) -> None:
    files = {path: blob.content for path, blob in hub.repos["models", VIT].head.files.items()}
    config = json.loads(files["config.json"]) | {key: {"": "evil/kernel"}}
    hub.add(f"evil/{key}", files | {"config.json": json.dumps(config).encode()})
    arguments = ["run", RECIPES / "vit_flowers.py", "--backbone", f"evil/{key}", "--out", tmp_path / "run"]
    status, _, err = client(hftl, *arguments)
    assert (status, "asks for the kernel 'evil/kernel'" in err) == (2, True)
    assert hub.count("GET", "evil/kernel") == hub.count("HEAD", "evil/kernel") == 0


def test_an_adapter_is_pushed_as_one_and_names_its_base_with_the_commit(hub: Hub, runs: dict[str, Path]) -> None:
    files = hub.repos["models", "me/lora"].head.files
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
    }
    config = json.loads(files["adapter_config.json"].content)
    base = hub.repos["models", VIT].head.sha
    assert (config["base_model_name_or_path"], config["revision"]) == (VIT, base)
    told = card(hub, "lora").data.to_dict()
    assert (told["library_name"], told["base_model"], told["base_model_relation"]) == ("peft", VIT, "adapter")


def test_the_card_s_metadata_are_what_the_hub_indexes(hub: Hub, runs: dict[str, Path]) -> None:
    told = card(hub, "flowers").data.to_dict()
    metrics = json.loads((runs["flowers"] / "metrics.json").read_text())["eval"]
    (index,) = told.pop("model-index")
    assert told == {
        "base_model": VIT,
        "base_model_relation": "finetune",
        "datasets": [FLOWERS],
        "library_name": "transformers",
        "license": "apache-2.0",
        "metrics": ["accuracy", "f1"],
        "pipeline_tag": "image-classification",
        "tags": ["hftl", "transfer-learning", "head"],
    }
    (result,) = index["results"]
    assert result["dataset"]["revision"] == hub.repos["datasets", FLOWERS].head.sha
    assert result["metrics"][0] == {"type": "accuracy", "value": metrics["accuracy"], "name": "Accuracy"}
    assert card(hub, "reviews").data.license == "mit"


def test_the_card_s_recipe_does_the_same_again_and_computes_nothing(
    hub: Hub, runs: dict[str, Path], client: Client, tmp_path: Path
) -> None:
    (tmp_path / "again.py").write_text(blocks(hub, "flowers")[1])
    status, _, err = client(hftl, "run", tmp_path / "again.py", "--out", tmp_path / "run")
    assert status == 0, err
    first, again = (json.loads((run / "metrics.json").read_text()) for run in (runs["flowers"], tmp_path / "run"))
    assert again["features"]["computed"] == 0
    assert again["eval"] == first["eval"]


def test_hftl_predicts_by_the_model_on_the_hub(hub: Hub, runs: dict[str, Path], client: Client, tmp_path: Path) -> None:
    for number, image in enumerate(FLOWER_IMAGES):
        (tmp_path / f"{number:02}.png").write_bytes(image)
    commit = hub.repos["models", "me/flowers"].head.sha
    status, out, err = client(hftl, "predict", f"me/flowers@{commit}", tmp_path, "--json")
    assert status == 0, err
    answers = [json.loads(line)["scores"] for line in out.splitlines()]
    same(runs["flowers"], [[{"label": name, "score": score} for name, score in row.items()] for row in answers])


def test_a_second_push_of_the_same_run_changes_nothing(hub: Hub, runs: dict[str, Path], client: Client) -> None:
    before = len(hub.repos["models", "me/flowers"].history())
    assert client(hftl, "push", runs["flowers"], "me/flowers")[0] == 0
    assert len(hub.repos["models", "me/flowers"].history()) == before == 2


def test_a_push_that_fails_leaves_the_run_and_says_how_to_push_it_later(
    hub: Hub, client: Client, tmp_path: Path
) -> None:
    hub.fail("POST", "/commit/", status=503, times=1000, retry_after=0)
    status, _, err = client(
        hftl, "run", RECIPES / "vit_flowers.py", "--out", tmp_path / "run", "--push", "me/later", "--public"
    )
    hub.faults.clear()
    assert status == 1
    assert err.splitlines()[-1].endswith(f"to push it later: hftl push {tmp_path / 'run'} me/later --public)")
    assert client(hftl, "push", tmp_path / "run", "me/later", "--public")[0] == 0


def test_the_token_is_nowhere_and_no_folder_of_this_machine_is_published(
    hub: Hub, runs: dict[str, Path], client: Client, work: Path
) -> None:
    assert sum("Authorization" in request.headers or "authorization" in request.headers for request in hub.requests)
    kept = [path for path in work.rglob("*") if path.is_file()]
    assert {"hf", "hftl", "flowers"} <= {path.relative_to(work).parts[0] for path in kept}
    uploads = [
        blob.content
        for (_, name), repo in hub.repos.items()
        if name.startswith("me/")
        for commit in repo.commits.values()
        for blob in commit.files.values()
    ]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]
    assert not any(TOKEN.encode() in content or str(work).encode() in content for content in uploads)
    # Large files come from another host, which has no business with the token.
    assert not any(TOKEN in str(request.headers) for request in hub.requests if request.host == "storage")

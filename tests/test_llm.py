"""Causal language models as backbones of texts: what they lack, their last token, 16 and fewer bits."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from runs import Cli, metrics, predictions
from safetensors import safe_open
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import hftl
from hftl.backbones.precision import in_float32, slices
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone
from hftl.backbones.weights import find_rule

TEXTS = "text,label\n" + "".join(
    f"{text},{label}\n"
    for text, label in [
        ("the cat sat on the mat", "cat"),
        ("a dog ran over the hill", "dog"),
        ("the red bird flew under a tree", "bird"),
        ("one cat ran", "cat"),
        ("two dog sat on a blue rug", "dog"),
        ("what bird is this", "bird"),
        ("cat", "cat"),
        ("where was the very blue dog not", "dog"),
        ("who is a bird over the tree hill mat rug tree hill", "bird"),
    ]
    * 4
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.csv").write_text(TEXTS)
    return tmp_path


def run_on(backbone: str) -> list[str]:
    """The beginning of a command that runs on a backbone and the texts above."""
    return ["run", "--backbone", backbone, "--data", "texts.csv"]


def scored_rows(run: str) -> tuple[list[str], np.ndarray]:
    """The test rows of a run, and the scores that it gave them."""
    table = predictions(Path(run))
    lines = TEXTS.splitlines()[1:]
    texts = [lines[int(row.rpartition(" ")[2]) - 1].rpartition(",")[0] for row in table["row"]]
    return texts, np.array(table["scores"])


def plain_scores(folder: str, texts: list[str]) -> np.ndarray:
    """What plain transformers says of texts, in one padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.float().softmax(-1).numpy()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma", "gemma3_text", "mistral"])
def test_a_causal_checkpoint_without_a_padding_token_becomes_a_classifier_that_anybody_loads(
    cli: Cli, here: Path, name: str
) -> None:
    tiny.save_causal(name, here / name)
    said = cli.ok(*run_on(name), "--pooling", "last", "--out", "run")
    kind = json.loads(Path("run/model/config.json").read_text())["architectures"][0]
    assert kind.endswith("ForSequenceClassification")
    assert f"the last token is what {kind} reads by itself (pooling native)" in said
    texts, scores = scored_rows("run")
    assert np.abs(plain_scores("run/model", texts) - scores).max() < 1e-4
    head = load_file("run/model/model.safetensors")["score.weight"]
    # Against the base model, text by text: no padding, and no class that looks for the last token.
    body = AutoModelForCausalLM.from_pretrained(name).base_model.eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    with torch.no_grad():
        last = [body(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts]
    logits = torch.stack(last) @ head.T
    assert np.abs(logits.softmax(-1).numpy() - scores).max() < 1e-4
    cli.ok(*run_on(name), "--out", "native")
    assert np.allclose(scored_rows("native")[1], scores, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "mistral"])
def test_the_mean_over_the_tokens_of_a_causal_model_is_what_sentence_transformers_classifies(
    cli: Cli, here: Path, name: str
) -> None:
    tiny.save_causal(name, here / name)
    cli.ok(*run_on(name), "--pooling", "mean", "--out", "run")
    texts, scores = scored_rows("run")
    logits = SentenceTransformer("run/model").encode(texts, convert_to_tensor=True)
    assert np.abs(logits.softmax(-1).cpu().numpy() - scores).max() < 1e-4
    # Against the base model as it was published, text by text, and the head alone.
    head = load_file("run/model/2_Dense/model.safetensors")
    body = AutoModelForCausalLM.from_pretrained(name).base_model.eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    with torch.no_grad():
        means = [body(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    expected = torch.stack(means) @ head["linear.weight"].T + head["linear.bias"]
    assert np.abs(expected.softmax(-1).numpy() - scores).max() < 1e-4


def test_where_a_text_ends_in_the_padding_token_the_last_token_is_not_what_the_class_reads(
    cli: Cli, here: Path
) -> None:
    tiny.save_causal("llama", here / "m", pad_token="[SEP]")
    tokenizer = tiny.tokenizer()  # ends each text in [SEP]
    tokenizer.pad_token = "[SEP]"
    tokenizer.save_pretrained("m")
    said = cli.ok(*run_on("m"), "--pooling", "last", "--out", "run")
    assert "by itself" not in said
    texts, scores = scored_rows("run")
    logits = SentenceTransformer("run/model").encode(texts, convert_to_tensor=True)
    assert np.abs(logits.softmax(-1).cpu().numpy() - scores).max() < 1e-4
    asked = hftl.load("run").predict(texts)
    assert np.allclose([each["score"] for each in asked], scores.max(1), atol=1e-4)


def test_weights_asked_for_in_16_bits_are_exported_in_them_and_the_head_in_32(cli: Cli, here: Path) -> None:
    tiny.save_causal("llama", here / "half", dtype=torch.bfloat16)
    tiny.save_causal("llama", here / "whole")
    for name in ("half", "whole"):
        said = cli.ok(*run_on(name), "--mixed-precision", "bf16", "--out", f"r-{name}")
        assert "% of the run's (bf16, weights in it; 10% would be allowed)" in said
        with safe_open(f"r-{name}/model/model.safetensors", framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert {kind for name, kind in kinds.items() if name != "score.weight"} == {"BF16"}
        assert kinds["score.weight"] == "F32"
        texts, scores = scored_rows(f"r-{name}")
        assert np.abs(plain_scores(f"r-{name}/model", texts) - scores).max() < 0.03
        # Asked by hftl nothing but the order of sums differs: its head is not rounded.
        asked = hftl.load(f"r-{name}").predict(texts)
        assert np.allclose([each["score"] for each in asked], scores.max(1), atol=0.01)
    spaces = {metrics(Path(f"r-{name}"))["features"]["space"] for name in ("half", "whole")}
    cli.ok(*run_on("half"), "--out", "r32")
    assert len(spaces | {metrics(Path("r32"))["features"]["space"]}) == 3
    cli.ok(*run_on("half"), "--mixed-precision", "bf16", "--out", "again")
    assert metrics(Path("again"))["features"]["computed"] == 0


def test_a_proof_computes_in_float32_with_the_weights_of_16_bits(here: Path) -> None:
    tiny.save_causal("llama", here / "m", dtype=torch.bfloat16)
    half, exact = (AutoModelForSequenceClassification.from_pretrained("m", dtype=d) for d in (torch.bfloat16, None))
    exact.float().score.weight.data = half.score.weight.detach().float()
    inputs = {"input_ids": torch.arange(3, 20)[None]}
    with torch.no_grad():
        before, expected = half(**inputs).logits, exact(**inputs).logits
        with in_float32(half):
            inside = half(**inputs).logits
        after = half(**inputs).logits
    assert torch.allclose(inside, expected, atol=1e-5)
    assert torch.equal(before, after)
    assert before.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_how_an_export_is_named_is_found_without_a_second_copy_of_the_weights(here: Path) -> None:
    backbone = TextBackbone(local_source(tiny.save_causal("llama", here / "m")))
    model, head = backbone.build(backbone.config("single_label", ["a", "b"]))
    rule = find_rule(model, head, backbone.weight_files())
    assert rule is not None
    assert (rule.add, rule.drop) == ("", [])
    # A file that does not hold all of the model would not load as it.
    some = dict(list(backbone.weight_files().items())[1:])
    assert find_rule(model, head, some) is None


def test_tensors_are_read_one_by_one_where_they_are_to_be_converted(here: Path) -> None:
    files = local_source(tiny.save_causal("llama", here / "m")).weight_files()
    assert len(set(files.values())) > 2
    mapped, read = slices(files, torch.float32), slices(files, torch.bfloat16)
    for name, file in files.items():
        with safe_open(file, framework="pt") as opened:
            assert torch.equal(mapped[name][...], opened.get_tensor(name))
            assert torch.equal(read[name][...], opened.get_tensor(name))


@pytest.mark.parametrize("method", ["lora", "full", "partial"])
def test_a_causal_class_is_fine_tuned_from_its_last_token(cli: Cli, here: Path, method: str) -> None:
    tiny.save_causal("llama", here / "m")
    few = ["--epochs", "1", "--gradient-checkpointing"]
    if method == "partial":
        few += ["--freeze", "1"]
    cli.ok(*run_on("m"), "--method", method, *few, "--out", "run")
    texts, scores = scored_rows("run")
    assert np.abs(plain_scores("run/model", texts) - scores).max() < 1e-4


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("gone", "model-00002-of-00005.safetensors is named by model.safetensors.index.json but missing"),
        ("cut", "model-00002-of-00005.safetensors is damaged (.*): fetch it again"),
        ("elsewhere", "model-00001-of-00005.safetensors is damaged (.*): fetch it again"),
        ("index", "model.safetensors.index.json is damaged (.*); fetch it again"),
        ("padding", "its tokenizer has no padding, end or unknown token to pad with"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(cli: Cli, here: Path, fault: str, line: str) -> None:
    none = dict.fromkeys(("eos_token", "unk_token", "pad_token")) if fault == "padding" else {}
    tiny.save_causal("llama", here / "m", **none)
    shard, index = Path("m/model-00002-of-00005.safetensors"), Path("m/model.safetensors.index.json")
    if fault == "gone":
        shard.unlink()
    elif fault == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif fault == "index":
        index.write_text("{")
    elif fault == "elsewhere":
        index.write_text(index.read_text().replace("00002-of", "00001-of"))
    refused = cli.refused(*run_on("m"), "--mixed-precision", "bf16", "--out", "run")
    assert re.search(line.replace("(", "\\(").replace(")", "\\)"), refused), refused


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_quantising_without_its_library_is_one_line(cli: Cli, here: Path) -> None:
    tiny.save_causal("llama", here / "m")
    line = cli.refused(*run_on("m"), "--quantize", "4bit", "--out", "run")
    assert "quantize='4bit' needs bitsandbytes: pip install bitsandbytes" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_lora_on_quantised_weights_without_a_gpu_is_one_line_that_says_what_to_do(cli: Cli, here: Path) -> None:
    tiny.save_causal("llama", here / "m")
    line = cli.refused(*run_on("m"), "--method", "lora", "--quantize", "4bit", "--out", "run")
    assert "quantize='4bit' with lora needs a CUDA GPU, and this machine has none: leave out quantize" in line
    assert "--method head" in line


@pytest.mark.parametrize("method", ["full", "partial"])
def test_quantised_weights_do_not_train_themselves(cli: Cli, here: Path, method: str) -> None:
    tiny.save_causal("llama", here / "m")
    line = cli.refused(*run_on("m"), "--method", method, "--quantize", "4bit", "--out", "run")
    said = f"the method '{method}' has no field 'quantize', which is one of head and lora: choose with --method"
    assert said in line
    recipe = Path("quantised.py")
    recipe.write_text(
        "from hftl import Full, Partial, Recipe, recipe\n\n\n@recipe\ndef quantised() -> Recipe:\n"
        f"    method = {method.title()}(quantize='4bit')\n"
        "    return Recipe(backbone='m', data='texts.csv', method=method)\n"
    )
    assert said in cli.refused("run", recipe, "--out", "run")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--pissa"], "pissa moves the frozen weights, and quantize rounds them: leave out one of them"),
        (["--from-block", "1"], "quantize goes with updates of all blocks: leave out from_block"),
        (["--pooling", "mean"], "quantize goes with pooling='native'"),
    ],
)
def test_what_does_not_go_with_lora_on_quantised_weights_is_one_line(
    cli: Cli, here: Path, flags: list[str], line: str
) -> None:
    assert line in cli.refused(*run_on("m"), "--method", "lora", "--quantize", "8bit", *flags, "--out", "run")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not here")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_backbone_is_exported_as_it_was_asked(
    cli: Cli, here: Path, bits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bitsandbytes wants multiples of 64.
    monkeypatch.setitem(tiny.TEXT, "llama", tiny.TEXT["llama"] | {"hidden_size": 64, "intermediate_size": 128})
    tiny.save_causal("llama", here / "m")
    for precision in ("no", "bf16"):
        run = f"run-{precision}"
        cli.ok(
            *run_on("m"),
            "--quantize",
            bits,
            "--mixed-precision",
            precision,
            "--out",
            run,
        )
        texts, scores = scored_rows(run)
        assert np.abs(plain_scores(f"{run}/model", texts) - scores).max() < (1e-3 if precision == "no" else 0.05)
        stored = load_file(f"{run}/model/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        assert stored.dtype in (torch.int8, torch.uint8)
    cli.ok(*run_on("m"), "--out", "plain")
    runs = [metrics(Path(run))["features"]["space"] for run in ("run-no", "run-bf16", "plain")]
    assert len(set(runs)) == 3
    line = cli.refused("export", "run-no", "--onnx")
    assert "bitsandbytes" in line
    line = cli.refused(*run_on("m"), "--quantize", bits, "--depth", "1", "--out", "x")
    assert "has no depths" in line

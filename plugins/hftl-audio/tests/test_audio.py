"""A modality that hftl has never heard of: from a folder of sounds to a model that transformers loads."""

from __future__ import annotations

import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hftl_audio.waves import read_wave
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    pipeline,
)
from typer.testing import CliRunner

import hftl
from hftl.cli import build_app
from hftl.testing import check_backbone

RATE = 16_000
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def tone(hertz: float, seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.02, round(seconds * rate))
    return 0.4 * np.sin(2 * np.pi * hertz * np.arange(len(noise)) / rate + seed) + noise


def encoded(samples: np.ndarray, *, rate: int = RATE, width: int = 2, channels: int = 1) -> bytes:
    top = 2 ** (8 * width - 1) - 1
    whole = np.round(samples * top).astype(np.int64) + (128 if width == 1 else 0)
    raw = whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(raw)
    return file.getvalue()


def sounds() -> list[bytes]:
    return [encoded(tone(hertz, seconds)) for hertz, seconds in ((220, 0.4), (660, 0.7), (440, 0.55), (880, 0.5))]


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AST without a head."""
    folder = tmp_path_factory.mktemp("ast")
    torch.manual_seed(0)
    model = ASTModel(ASTConfig(**WIDE, max_length=64, num_mel_bins=32, patch_size=8, time_stride=8, frequency_stride=8))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny wav2vec2 with the projector of an earlier fine-tuning, of the kind that knows an attention mask."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    torch.manual_seed(0)
    convolutions = {
        "conv_dim": (16, 16),
        "conv_kernel": (400, 3),
        "conv_stride": (160, 2),
        "num_feat_extract_layers": 2,
    }
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
    config = Wav2Vec2Config(**WIDE, **convolutions, **positions, feat_extract_norm="layer", do_stable_layer_norm=True)
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True).save_pretrained(folder)
    return folder


def plain(folder: Path, rows: Any) -> np.ndarray:
    """Logits by ``transformers.pipeline``, from samples that hftl has not touched."""
    asked = pipeline("audio-classification", model=str(folder))
    found = []
    for row in rows:
        with wave.open(io.BytesIO(row)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
        answer = asked({"raw": samples, "sampling_rate": RATE}, top_k=3, function_to_apply="none")
        found.append(
            [{entry["label"]: entry["score"] for entry in answer}[name] for name in ("first", "second", "third")]
        )
    return np.array(found)


def test_ast_keeps_the_promises(ast: Path) -> None:
    check_backbone(str(ast), rows=sounds(), plain=plain)


def test_wav2vec2_keeps_the_promises(wav2vec2: Path) -> None:
    check_backbone(f"audio:{wav2vec2}", rows=sounds(), plain=plain)


def test_base_wav2vec2_is_refused_for_a_head_and_says_so(wav2vec2: Path, tmp_path: Path) -> None:
    for file in wav2vec2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Wav2Vec2ForSequenceClassification.from_pretrained(wav2vec2).wav2vec2.save_pretrained(tmp_path)
    from hftl_audio.backbone import AudioBackbone

    from hftl.backbones.cut.search import find_cut

    backbone = AudioBackbone(hftl.Source.of(tmp_path))
    model, head = backbone.build(backbone.config("single_label", ["a", "b"]))
    assert {name.split(".")[0] for name in head} == {"projector", "classifier"}
    with pytest.raises(hftl.CutError, match="fine-tune it instead"):
        find_cut(model, head, backbone.probes())


def test_run_on_a_folder_of_sounds(ast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HFTL_CACHE", str(tmp_path / "cache"))
    for split, seeds in (("train", range(8)), ("test", range(8, 11))):
        for label, hertz in (("low", 300), ("middle", 1200), ("high", 4000)):
            folder = tmp_path / "sounds" / split / label
            folder.mkdir(parents=True)
            for seed in seeds:
                (folder / f"{seed}.wav").write_bytes(encoded(tone(hertz * (1 + seed / 100), 0.5, seed)))
    (tmp_path / "recipe.py").write_text(
        "from hftl import Recipe, recipe\n@recipe\ndef r() -> Recipe:\n"
        f"    return Recipe(backbone={str(ast)!r}, data={str(tmp_path / 'sounds')!r})\n"
    )
    out = tmp_path / "run"
    command_line("run", str(tmp_path / "recipe.py"), "--folds", "2", "--quiet", "--out", str(out))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["eval"]["accuracy"] == 1.0
    assert metrics["features"]["computed"] == 33
    assert "audio-classification" in (out / "model" / "README.md").read_text()

    # The same by transformers alone, and by hftl predict.
    asked = pipeline("audio-classification", model=str(out / "model"))
    paths = sorted((tmp_path / "sounds" / "test").glob("*/*.wav"))
    theirs = [asked({"raw": read_wave(p.read_bytes(), "", RATE), "sampling_rate": RATE})[0] for p in paths]
    assert [answer["label"] for answer in theirs] == [path.parent.name for path in paths]
    printed = command_line("predict", str(out), *map(str, paths), "--json")
    ours = [json.loads(line) for line in printed.splitlines()]
    assert [row["label"] for row in ours] == [answer["label"] for answer in theirs]
    np.testing.assert_allclose([row["score"] for row in ours], [answer["score"] for answer in theirs], atol=1e-5)


def command_line(*arguments: str) -> str:
    done = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_waves_of_every_width(width: int) -> None:
    samples = tone(440, 0.05)
    read = read_wave(encoded(samples, width=width), "a.wav", RATE)
    np.testing.assert_allclose(read, samples, atol=2.0 ** (2 - 8 * width) + 1e-6)


def test_channels_are_averaged_and_rates_changed() -> None:
    left, right = tone(440, 0.1, rate=8000), tone(100, 0.1, rate=8000)
    read = read_wave(encoded(np.stack([left, right], 1).ravel(), rate=8000, channels=2), "a.wav", RATE)
    assert read.dtype == np.float32
    assert len(read) == 1600
    # Every second sample of the doubled rate lies on the original curve.
    np.testing.assert_allclose(read[200:-200:2], ((left + right) / 2)[100:-100], atol=0.02)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"no sound", "no PCM wave file"),
        (encoded(tone(440, 0.1))[:-100], "cut short"),
        (encoded(np.zeros(0)), "holds no sound"),
    ],
)
def test_bad_sounds_are_named(row: bytes, why: str) -> None:
    with pytest.raises(hftl.BadRowError, match=f"^bell.wav: .*{why}"):
        read_wave(row, "bell.wav", RATE)


def test_waveforms_without_a_mask_must_be_equally_long(wav2vec2: Path, tmp_path: Path) -> None:
    for file in wav2vec2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(tmp_path)
    from hftl_audio.backbone import AudioBackbone

    backbone = AudioBackbone(hftl.Source.of(tmp_path))
    rows = backbone.encode(sounds()[:2], ["a", "b"])
    with pytest.raises(hftl.BackboneError, match="cut them to one length"):
        backbone.collate(rows)
    assert backbone.collate(rows[:1] * 2)["input_values"].shape == (2, 6400)

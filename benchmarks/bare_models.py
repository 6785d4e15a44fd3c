"""Every vision type of transformers' `AutoModel`, tiny and random, pooled: cut, head, export and plain reload.

    python benchmarks/bare_models.py [TYPE…]

For each model type that reads pictures a small random checkpoint is written, with a configuration that is shrunk by
the names of its fields. Every pooling that hftl offers is compared with plain transformers; then `hftl.run` solves a
head and exports it, and the folder is loaded as its card says, with transformers and torch alone: the probabilities of
every test row are compared with the run's. A type is *exact* (all within 1e-5), or *refused* or *not built* in one
line; *wrong* and *traceback* are faults of hftl, and the command then fails. Types without a classification class in
transformers are marked with a star.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from architectures import SPECIAL, Outcome, picture_size, pictures, shrunk
from machine import tell_machine
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoImageProcessor, AutoModel, Siglip2ImageProcessorPil
from transformers import ViTImageProcessorPil as ViTProcessor
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIED,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import logging

import hftl
from hftl.backbones.bare import BareImageBackbone
from hftl.backbones.cut.capture import Capture
from hftl.backbones.source import local_source
from hftl.errors import HftlError
from hftl.frozen.view import View

TOLERANCE = 1e-5
FOUR = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "image_size": 64}
# What the names of fields do not say.
MORE: dict[str, dict[str, Any]] = {
    "dinov3_convnext": FOUR,
    "siglip2_vision_model": {"num_patches": 16},
}


def types() -> list[str]:
    """Types whose base model reads pictures and nothing else."""
    found = []
    for name in MODEL_MAPPING_NAMES:
        try:
            made = MODEL_MAPPING[CONFIG_MAPPING[name]]
            modalities = (made[0] if isinstance(made, (tuple, list)) else made).input_modalities
        except (ImportError, KeyError, ValueError):
            continue
        if modalities in ("image", ("image",), ["image"]) or name in CLASSIFIED:
            found.append(name)
    return found


def listed(config: Any) -> dict[str, Any]:
    """Small values for the fields that hold one number a stage."""
    sizes: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if not (isinstance(value, list) and value and all(isinstance(each, int) for each in value)):
            continue
        if name == "depths":
            sizes[name] = [1] * len(value)
        elif name in ("hidden_sizes", "embed_dims", "encoder_hidden_sizes"):
            sizes[name] = [16 * (stage + 1) for stage in range(len(value))]
        elif name in ("num_heads", "num_attention_heads"):
            sizes[name] = [2] * len(value)
    return sizes


def configuration(model_type: str) -> Any:
    kind = CONFIG_MAPPING[model_type]
    usual = kind()
    options = shrunk(usual) | listed(usual) | SPECIAL.get(model_type, {}) | MORE.get(model_type, {})
    for part in type(usual).sub_configs:
        inner = getattr(usual, part, None)
        if isinstance(options.get(part), dict) and hasattr(inner, "to_dict"):
            # Such a part may be of any type, so that its type has to be named.
            options[part] = {"model_type": inner.model_type, **listed(inner), **options[part]}
    return kind(**{name: value for name, value in options.items() if value is not None})


def checkpoint(model_type: str, folder: Path) -> None:
    config = configuration(model_type)
    config.architectures = []
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    if not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in model.modules()):
        with torch.no_grad():
            for parameter in model.parameters():
                # The classes' own initial values make every row look alike.
                if parameter.dim() > 1:
                    parameter.mul_(4)
    model.save_pretrained(folder)
    side = picture_size(config)
    if "siglip2" in model_type:
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(folder)
    else:
        ViTProcessor(size={"height": side[0], "width": side[1]}).save_pretrained(folder)


def by_hand(output: Any, facts: dict[str, Any], inputs: Any) -> torch.Tensor:
    """Vectors (n, d) of a base model's output, as ``head.json`` says, in plain torch."""
    if facts["pooling"] in ("pooler", "projection"):
        vectors: torch.Tensor = output.pooler_output
        return vectors / vectors.norm(dim=1, keepdim=True) if facts["pooling"] == "projection" else vectors
    last = output.last_hidden_state
    rows = []
    for i in range(len(last)):
        if facts["layout"] == "map":
            tokens = torch.stack([last[i, :, y, x] for y in range(last.shape[2]) for x in range(last.shape[3])])
        else:
            tokens = last[i].reshape(-1, last.shape[-1])
        if facts["mask"]:
            tokens = torch.stack([token for token, own in zip(tokens, inputs[facts["mask"]][i], strict=True) if own])
        parts = {"cls": tokens[0], "mean": tokens[facts["skip"] :].mean(0)}
        rows.append(torch.cat([parts[part] for part in facts["pooling"].split("+")]))
    return torch.stack(rows)


def gap_of_poolings(folder: Path) -> tuple[list[str], float]:
    """The poolings that hftl offers of a checkpoint, and how far one of them is from plain transformers'."""
    plain = AutoModel.from_pretrained(folder).eval()
    if getattr(plain.config, "mask_ratio", 0):
        plain.config.mask_ratio = 0.0
    worst = 0.0
    backbone = BareImageBackbone(local_source(folder))
    kinds = backbone.poolings
    for kind in kinds:
        made = BareImageBackbone(local_source(folder), kind)
        model, head = made.build(made.config("single_label", ["a", "b", "c"]))
        batch = made.probes()[0]
        cut, _ = View(kind).find_cut(model, head, made.probes())  # type: ignore[arg-type]
        kept = Capture(model, [cut])(batch)[0]["features"]
        facts = asdict(made.pooling) | {"pooling": kind}
        with torch.no_grad():
            wanted = by_hand(getattr(plain, facts["call"])(**batch), facts, batch)
        worst = max(worst, float((kept - wanted).abs().max()) / max(1.0, float(wanted.abs().max())))
    return kinds, worst


def gap_of_export(out: Path, data: Path) -> float:
    """How far the probabilities of the plain model and its head are from the run's, on every test row."""
    table = pq.read_table(out / "predictions.parquet")
    model = AutoModel.from_pretrained(out / "model").eval()
    reads = AutoImageProcessor.from_pretrained(out / "model")
    head = load_file(out / "model" / "head.safetensors")
    facts = json.loads((out / "model" / "head.json").read_text())
    inputs = reads(
        images=[Image.open(data / row).convert("RGB") for row in table["row"].to_pylist()], return_tensors="pt"
    )
    with torch.no_grad():
        vectors = by_hand(getattr(model, facts["call"])(**inputs), facts, inputs)
    scores = (vectors @ head["weight"].T + head["bias"]).softmax(1).numpy()
    return float(np.abs(scores - np.array(table["scores"].to_pylist())).max())


def through_hftl(model_type: str, data: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "model", Path(name) / "run"
        try:
            checkpoint(model_type, source)
        except Exception as error:  # whatever a class raises on a configuration that was shrunk by names
            return Outcome("not built", f"{type(error).__name__}: {' '.join(str(error).split())[:110]}")
        try:
            kinds, gap = gap_of_poolings(source)
            method: Any = hftl.Head(folds=2, strengths=[1.0, 0.01], calibrate=False, pooling="mean")
            hftl.run(
                hftl.Recipe(backbone=str(source), data=str(data), method=method), out=out, quiet=True, report=False
            )
        except HftlError as error:
            status = "traceback" if "\n" in str(error) else "refused"
            return Outcome(
                status, f"{type(error).__name__}: {str(error).partition(' pooled to one vector ')[2] or error}"
            )
        except Exception as error:
            return Outcome("traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        try:
            exported = gap_of_export(out, data)
        except Exception as error:
            return Outcome("wrong", f"plain transformers: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    said = f"{', '.join(kinds)}: {gap:.0e}, exported {exported:.0e}"
    return Outcome("exact" if max(gap, exported) < TOLERANCE else "wrong", said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all of them where none is given")
    asked = parser.parse_args().types
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        data = pictures(Path(folder), rows=18)
        for model_type in asked or types():
            started = time.monotonic()
            outcome = through_hftl(model_type, data)
            star = " " if model_type in CLASSIFIED else "*"
            counts[outcome.status] += 1
            counts[f"{outcome.status}*"] += star == "*"
            seconds = time.monotonic() - started
            print(f"{star}{model_type:27}{outcome.status:10}{seconds:5.1f} s  {outcome.detail}", flush=True)
    for status in ("exact", "refused", "not built", "wrong", "traceback"):
        print(f"{status:10} {counts[status]:4}, {counts[status + '*']} of them without a classification class")
    if counts["wrong"] or counts["traceback"]:
        raise SystemExit(1)


if __name__ == "__main__":
    tell_machine()
    main()

"""The text tower beside an image tower, and the linear classifier that its embeddings of label names are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from hftl.errors import BackboneError, RecipeError
from hftl.wording import named_error, one_line, shortened

PLACE = "{label}"
TEXTS_AT_ONCE = 64


def prompts_of(label: str, templates: Sequence[str]) -> list[str]:
    """What is said of a label, one text for each template; underscores stand for spaces."""
    return [template.replace(PLACE, label.replace("_", " ")) for template in templates]


def check_templates(templates: Sequence[str]) -> None:
    """See that each template has a place for the label.

    Raises:
        RecipeError: one has none, or there is no template.
    """
    if not templates:
        raise RecipeError('no prompt: give one such as --prompt "a photo of a {label}"')
    for template in templates:
        if PLACE not in template:
            raise RecipeError(f"prompt {shortened(template, 60)!r} has no place for the label: write {PLACE} into it")


def text_classifier(base: Any, folder: Path, texts: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """The weight and bias that make a picture's embedding of length one into the model's own logits of texts.

    Several texts of a class are averaged as CLIP's paper does (Radford et al. 2021, section 3.1.4): each embedding is
    scaled to length one, and so is their mean.

    Args:
        base: a base model with ``get_text_features`` and ``logit_scale``, on the CPU.
        folder: of its tokenizer.
        texts: for each of C classes, its texts.

    Returns:
        (C, d) and (C,) float32.

    Raises:
        BackboneError: it brings no tokenizer, or its text tower cannot read what that gives.
    """
    tokenizer = _tokenizer(folder)
    # Some towers were trained on texts of one length; in the others a mask, or the order of attention, hides padding.
    length = base.config.get_text_config().max_position_embeddings
    flat = [text for of_class in texts for text in of_class]
    parts = []
    try:
        for start in range(0, len(flat), TEXTS_AT_ONCE):
            chunk = list(flat[start : start + TEXTS_AT_ONCE])
            inputs = tokenizer(chunk, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            with torch.no_grad():
                parts.append(base.get_text_features(**inputs).pooler_output.float())
    except Exception as error:  # whatever a class raises on what its tokenizer gives
        raise BackboneError(f"{folder.name}: its text tower cannot read a label: {named_error(error)[:200]}") from error
    embeddings = torch.split(nn.functional.normalize(torch.cat(parts), dim=-1), [len(each) for each in texts])
    means = nn.functional.normalize(torch.stack([of_class.mean(0) for of_class in embeddings]), dim=-1)
    bias = getattr(base, "logit_bias", None)
    with torch.no_grad():
        shift = torch.zeros(len(means)) if bias is None else bias.detach().float().reshape(1).expand(len(means)).clone()
        return means * base.logit_scale.detach().float().exp(), shift


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a tokenizer's class raises on its files
        raise BackboneError(f"{folder.name} has no usable tokenizer: {one_line(error, 200)}") from error

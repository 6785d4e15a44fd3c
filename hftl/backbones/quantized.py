"""Frozen weights in 8 or 4 bits, by bitsandbytes, which is an extra library and is imported by transformers alone."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import BitsAndBytesConfig

from hftl.errors import BackboneError
from hftl.methods import Bits

LIBRARY = "bitsandbytes"


def check_quantizer(bits: Bits, *, trains_body: bool) -> None:
    """See that the library is here and, where more than a head trains, a GPU.

    Raises:
        BackboneError: one of them is not.
    """
    if trains_body and PartialState().device.type != "cuda":
        raise BackboneError(
            f"quantize={bits!r} with lora needs a CUDA GPU, and this machine has none: leave out quantize, or train a "
            "head on the quantised weights (--method head)"
        )
    if find_spec(LIBRARY) is None:
        raise BackboneError(f"quantize={bits!r} needs {LIBRARY}: pip install {LIBRARY}")


def quantization(bits: Bits, dtype: torch.dtype) -> Any:
    """What transformers is told, to quantise the linear layers of a body as it reads them.

    Args:
        bits: ``"8bit"`` for LLM.int8 (Dettmers et al. 2022) without its outlier columns, which are chosen by the whole
            batch, so that a row's numbers would depend on its neighbours; ``"4bit"`` for NF4 (Dettmers et al. 2023).
        dtype: of all else, and of the products with weights of 4 bits.
    """
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def quantizer_identity(bits: Bits) -> dict[str, str]:
    """What of it can change a feature: the scheme, and the version of the library, whose kernels round as they like."""
    scheme = {"8bit": "int8, no outliers", "4bit": "nf4"}[bits]
    return {"bits": bits, "scheme": scheme, LIBRARY: version(LIBRARY)}


def is_quantized(model: Any) -> bool:
    """Whether transformers read a model's weights into fewer than 16 bits."""
    return bool(getattr(model, "is_quantized", False))


def is_quantized_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer in fewer bits, known by its package, which need not be here."""
    return isinstance(module, nn.Linear) and type(module).__module__.partition(".")[0] == LIBRARY


def device_of_weights(quantized: bool) -> torch.device:
    """Where weights are read to: quantised ones to the GPU where there is one, as moving them may change them."""
    device = PartialState().device
    return device if quantized and device.type == "cuda" else torch.device("cpu")

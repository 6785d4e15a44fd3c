"""`SentenceHead`: a sentence-transformers folder that hftl exported, as a classification model of its own tokens.

sentence-transformers runs such a folder as body, pooling and dense layers, one after the other. Here the same files are
read with transformers and torch alone, so that hftl can ask its own exports without another library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hftl.backbones.pooling import Pooled
from hftl.errors import BackboneError

MODULES = "modules.json"
# The modes of its pooling that are hftl's kinds; several stand behind each other in this order.
MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
POOLINGS = ("cls", "mean", "cls+mean", "last")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "torch.nn.modules.linear.Identity": nn.Identity,
    "torch.nn.modules.activation.GELU": nn.GELU,
}


class SentenceHead(nn.Module):
    """A text body, the pooling of its tokens, and dense layers that end in the logits.

    Args:
        body: a transformers model whose first output is (n, t, d).
        pooled: how its tokens are pooled.
        layers: from (n, d) to logits (n, C).
    """

    def __init__(self, body: Any, pooled: Pooled, layers: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.pooled = pooled
        self.layers = layers
        self.config = body.config

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits (n, C) of tokens (n, t)."""
        return SequenceClassifierOutput(logits=self.layers(self.pooled.of(self.body(**inputs), inputs)))


def read_sentence_head(folder: Path, body: Any) -> SentenceHead:
    """The modules of a folder on top of its body.

    Args:
        folder: the sentence-transformers folder.
        body: its transformers model, loaded.

    Raises:
        BackboneError: it has modules that hftl does not write, so that only sentence-transformers can run it.
    """
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) != {"Dense"}:
            raise _foreign(folder, f"its modules are {', '.join(kinds)}")
        _, pooling, *dense = [folder / module["path"] for module in modules]
        return SentenceHead(body, _pooling(folder, pooling), nn.Sequential(*(_dense(folder, path) for path in dense)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{folder.name}: its sentence-transformers modules are damaged ({error})") from error


def _pooling(folder: Path, path: Path) -> Pooled:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    modes = [name for name, chosen in config.items() if name.startswith("pooling_mode_") and chosen is True]
    kind = "+".join(name for mode, name in MODES.items() if mode in modes)
    if kind not in POOLINGS or not set(modes) <= set(MODES):
        raise _foreign(folder, f"it pools by {', '.join(modes) or 'nothing'}")
    return Pooled(kind, mask="attention_mask")


def _dense(folder: Path, path: Path) -> nn.Sequential:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    activation = ACTIVATIONS.get(config["activation_function"])
    if activation is None:
        raise _foreign(folder, f"a layer ends in {config['activation_function']}")
    tensors = load_file(path / "model.safetensors")
    layer = nn.Linear(config["in_features"], config["out_features"], bias=config["bias"])
    layer.load_state_dict({name.removeprefix("linear."): value for name, value in tensors.items()})
    return nn.Sequential(layer, activation())


def _foreign(folder: Path, why: str) -> BackboneError:
    return BackboneError(
        f"{folder.name} is a sentence-transformers model that hftl did not write ({why}): "
        f"SentenceTransformer(FOLDER).encode(texts) runs it, and the plugin hftl-sentence-transformers trains on it"
    )

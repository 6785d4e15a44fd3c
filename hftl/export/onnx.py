"""A trained model as ONNX: one file that runs without torch, the label names and the preprocessing beside it.

torch's own exporter traces the model's forward once; the number of rows and the length of texts stay free. What the
file computes is compared with the model by whoever calls this. The libraries are an extra, ``hftl[onnx]``, and are
imported inside functions.
"""

from __future__ import annotations

import json
import logging
import mmap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from hftl.backbones.files import ONNX
from hftl.errors import BackboneError, UserError
from hftl.store.files import size_and_checksum
from hftl.wording import named_error

FACTS = "export.json"
# The operation that finds the range of a whole batch.
DYNAMIC = b"DynamicQuantizeLinear"
# Where a run keeps them: float32, and 8 bits.
ONNX_FOLDERS = ("onnx", "onnx-int8")
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
# A file of protobuf holds no more than 2 GB; larger weights stand in a file beside it.
MOST_BYTES_IN_FILE = 1_500_000_000
Inputs = Mapping[str, Tensor]


def check_libraries(*names: str) -> None:
    """See that the libraries of the extra are here.

    Raises:
        UserError: one is not.
    """
    missing = [name for name in names or LIBRARIES if find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {' and '.join(missing)}: pip install 'hftl[onnx]'")


class OnnxNetwork(nn.Module):
    """An ONNX file in place of a classification model: called with a batch, it gives its logits.

    Args:
        folder: with ``model.onnx`` and ``config.json``.

    Attributes:
        ranges_of_batch: whether a row's numbers depend on its batch, so that rows are to be asked one by one.

    Raises:
        BackboneError: the file is damaged, or not what was compared when it was exported.
        UserError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path) -> None:
        check_libraries("onnxruntime")
        import onnxruntime

        super().__init__()
        check_exported(folder)
        self.config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        options = onnxruntime.SessionOptions()
        # What torch may use is what a person allowed this process to use.
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                str(folder / ONNX), options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # onnxruntime has a class of its own for each thing that is wrong with a file
            raise BackboneError(f"{folder / ONNX} cannot be loaded: {named_error(error)[:300]}") from error
        self.names = [each.name for each in self.session.get_inputs()]
        # Where ranges of activations are found as they run, a row's numbers depend on the rows beside it.
        with (folder / ONNX).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self.ranges_of_batch = content.find(DYNAMIC) >= 0

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Logits (n, C) float32 on the CPU of a batch of n rows; (n, length, C) of a model for words."""
        given = {name: inputs[name].cpu().numpy() for name in self.names}
        (logits,) = self.session.run(["logits"], given)
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Keep beside an ONNX file how it was compared, and its checksum."""
    stated = {**facts, "checksum": size_and_checksum(folder / ONNX)[1]}
    (folder / FACTS).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def check_exported(folder: Path) -> None:
    """See that an ONNX file is the one that was compared; what others exported states nothing.

    Raises:
        BackboneError: it is another one.
    """
    if not (folder / FACTS).is_file():
        return
    try:
        stated = json.loads((folder / FACTS).read_text(encoding="utf-8"))["checksum"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{folder / FACTS} is damaged; export the run again") from error
    if stated != size_and_checksum(folder / ONNX)[1]:
        raise BackboneError(
            f"{folder / ONNX} is not the file that was exported: export the run again; if you changed it on purpose, "
            f"remove {FACTS} beside it"
        )


class _Positional(nn.Module):
    """A model whose inputs are told apart by their place, as a traced graph's are."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *values: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, values, strict=True))).logits
        return logits


def write_onnx(model: nn.Module, batches: Sequence[Inputs], file: Path) -> None:
    """Trace a model's forward and write it.

    Args:
        model: in eval mode, on the CPU.
        batches: as its forward takes them, of unlike lengths where rows may be: dimensions that differ between them
            stay free, and so does the number of rows. The first is traced, and has at least two rows.
        file: where to.

    Raises:
        BackboneError: the forward cannot be traced, or holds an operation that ONNX does not know.
        UserError: a library is not installed.
    """
    check_libraries()
    example = dict(batches[0])
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    try:
        with _quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                _Positional(model, list(example)),
                tuple(example.values()),
                file,
                input_names=list(example),
                output_names=["logits"],
                dynamic_shapes={"values": tuple(_free(name, batches) for name in example)},
                dynamo=True,
                external_data=size > MOST_BYTES_IN_FILE,
                verbose=False,
            )
    except Exception as error:  # the exporter passes on whatever a model's forward raises under tracing
        raise BackboneError(
            f"the {type(model).__name__} cannot be written as ONNX: {named_error(error)[:300]}"
        ) from error


def _free(name: str, batches: Sequence[Inputs]) -> dict[int, str]:
    """The dimensions of an input that are not the same in every batch, by the names that they get in the file."""
    shapes = [batch[name].shape for batch in batches]
    # Inputs of texts share their length, and differ in it; two free dimensions of a picture are two lengths.
    varying = [d for d in range(1, len(shapes[0])) if len({shape[d] for shape in shapes}) > 1]
    names = ["length"] if len(varying) == 1 else [f"length_{d}" for d in varying]
    return {0: "batch", **dict(zip(varying, names, strict=True))}


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what the exporter tells its own developers."""
    # onnxruntime's quantisation speaks as nobody, that is, as the root.
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", None)
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def quantize(file: Path, to: Path, calibration: Sequence[Inputs]) -> None:
    """Store weights in 8 bits and multiply in them.

    Args:
        file: what `write_onnx` wrote.
        to: where to write.
        calibration: batches whose activations say which range each gets; none for ranges that are found for each
            batch anew as it runs, which suits texts.

    Raises:
        BackboneError: the model has nothing that could be quantised, or onnxruntime cannot.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    common: dict[str, Any] = {"per_channel": True, "weight_type": QuantType.QInt8}
    try:
        with _quiet_exporter():
            if calibration:
                # Norms, softmax and what else is between the products keep their precision.
                quantize_static(
                    file,
                    to,
                    _Batches(calibration),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                    **common,
                )
            else:
                quantize_dynamic(file, to, op_types_to_quantize=["Gemm", "MatMul"], **common)
    except Exception as error:  # whatever onnxruntime raises on a graph that it cannot rewrite
        raise BackboneError(f"the model cannot be stored in 8 bits: {named_error(error)[:300]}") from error


class _Batches:
    """Batches as onnxruntime asks for them, one after the other."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._left = iter([{name: np.asarray(value) for name, value in batch.items()} for batch in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)

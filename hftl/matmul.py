"""Matrix products of float32 on CPUs, by oneDNN where it is the faster of the two libraries that torch carries.

torch multiplies float32 matrices on x86 with MKL, which leaves half of an AVX-512 unit idle on processors that are not
its maker's; oneDNN, which torch carries for convolutions, does not. Both compute in full float32.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# oneDNN compiles a kernel of nearly a megabyte for each number of rows. Where that varies from batch to batch, training
# keeps to multiples of this; and so few kernels are kept that they weigh little beside a model, but enough for one
# batch after another of the same size.
_ROWS = 128
_KERNELS_KEPT = "48"


def _find_kernel() -> Any:
    """oneDNN's linear layer; None on a CPU without AVX-512, and in a torch built without it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS_KEPT)
    # The operator behind torch.compile's linear layers on CPUs; it has no public name.
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_KERNEL = _find_kernel()


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, (n, k) and (k, m), without a gradient."""
    return _product(a, b.T) if _suits(a, b) else a @ b


def speed_up(model: nn.Module, *, rows_vary: bool = False) -> None:
    """Let every ``nn.Linear`` of a model multiply by the faster library; parameters and names stay as they are.

    Args:
        model: the model.
        rows_vary: whether training will see batches of many sizes, as texts of all lengths make them.
    """
    if _KERNEL is None:
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _LinearOfAnyRows if rows_vary else _Linear


class _Linear(nn.Linear):
    multiple = 1

    def forward(self, input: Tensor) -> Tensor:
        if not _suits(input, self.weight) or torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        if torch.is_grad_enabled():
            output: Tensor = _Differentiable.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias, self.multiple
            )
            return output
        return _product(input, self.weight, self.bias)


class _LinearOfAnyRows(_Linear):
    multiple = _ROWS


class _Differentiable(torch.autograd.Function):
    """``y = x W^T + b``, with the gradients ``g W``, ``g^T x`` and the sum of ``g`` over rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, multiple: int) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.multiple = multiple
        return _product(_filled(x, multiple), weight, bias)[: x.shape[:-1].numel()].view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows = _filled(gradient, ctx.multiple)
        count = gradient.shape[:-1].numel()
        of_x = _product(rows, weight.T)[:count].view(*gradient.shape[:-1], -1) if weight is not None else None
        of_weight = _product(rows.T, _filled(x, ctx.multiple).T) if x is not None else None
        return of_x, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None, None


def _filled(x: Tensor, multiple: int) -> Tensor:
    """(…, k) as rows (n, k), with rows of zeros up to a multiple of ``multiple``."""
    rows = x.flatten(0, -2)
    missing = -len(rows) % multiple
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def _suits(a: Tensor, b: Tensor) -> bool:
    plain = a.device.type == "cpu" and a.dtype == b.dtype == torch.float32
    return _KERNEL is not None and plain and a.dim() >= 2 and a.numel() > 0


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W^T + b`` for x (…, k) and W (m, k) of any strides."""
    product: Tensor = _KERNEL(x, weight, bias, "none", [], "")
    return product

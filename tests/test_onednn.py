"""Matrix products and their gradients beside float64, whichever library computes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hftl.onednn import matmul, speed_up


@pytest.mark.parametrize("rows", [(1, 80), (7, 80), (3, 5, 80), (2, 3, 5, 80), (0, 80), (80,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows_vary", [True, False])
def test_a_fast_layer_and_its_gradients_are_those_of_float64(
    rows: tuple[int, ...], bias: bool, rows_vary: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(80, 65, bias=bias)
    exact = nn.Linear(80, 65, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    inputs = torch.randn(rows)
    speed_up(layer, rows_vary=rows_vary)

    found = _outputs(layer, inputs)
    expected = _outputs(exact, inputs.double())
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [127, 128, 129, 1024, 2047, 4000])
def test_rows_multiplied_in_pieces_give_what_they_give_in_one(rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(80, 65)
    exact = nn.Linear(80, 65).double()
    exact.load_state_dict(layer.state_dict())
    inputs = torch.randn(2, rows, 80)
    speed_up(layer, rows_vary=True)

    found = _outputs(layer, inputs)
    expected = _outputs(exact, inputs.double())
    for value, reference in zip(found, expected, strict=True):
        # Gradients of weights are sums over thousands of rows: rounding grows with the sums, not with each element.
        torch.testing.assert_close(value, reference.float(), rtol=0, atol=1e-6 * float(reference.abs().max()))


def _outputs(layer: nn.Linear, inputs: Tensor) -> list[Tensor]:
    inputs = inputs.clone().requires_grad_()
    with torch.no_grad():
        plain = layer(inputs)
    output = layer(inputs)
    # A sum's gradient is an expanded scalar, the other one is not; both layouts must do.
    (output.square().sum() + output.sum()).backward()
    gradients = [parameter.grad for parameter in (inputs, *layer.parameters())]
    assert all(gradient is not None for gradient in gradients)
    return [plain, output.detach(), *(gradient for gradient in gradients if gradient is not None)]


def test_strides_do_not_matter() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(40, 30), torch.randn(30, 50)
    expected = (a.double() @ b.double()).float()
    for left in (a, a.T.contiguous().T, torch.randn(40, 60)[:, ::2].copy_(a)):
        for right in (b, b.T.contiguous().T):
            torch.testing.assert_close(matmul(left, right), expected, rtol=1e-5, atol=1e-5)


def test_frozen_weights_get_no_gradient_and_pass_it_on() -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    speed_up(layer)
    inputs = torch.randn(3, 8, requires_grad=True)
    layer(inputs).sum().backward()
    assert layer.weight.grad is None
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(3, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_torch(dtype: torch.dtype) -> None:
    layer = nn.Linear(8, 4, dtype=dtype)
    inputs = torch.randn(3, 8, dtype=dtype)
    expected = layer(inputs)
    speed_up(layer)
    assert torch.equal(layer(inputs), expected)


def test_autocast_is_left_to_torch() -> None:
    layer = nn.Linear(8, 4)
    inputs = torch.randn(3, 8)
    speed_up(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16


def test_a_model_keeps_its_parameters_and_their_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = dict(model.named_parameters())
    speed_up(model)
    assert dict(model.named_parameters()) == before
    assert all(isinstance(model[i], nn.Linear) for i in (0, 2))

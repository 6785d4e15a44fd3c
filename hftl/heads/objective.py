"""The objective of a stack of linear heads: mean loss of the rows each may see, plus an L2 penalty.

    F(W, b) = sum_i w_i loss(W z_i + b, y_i) / sum_i w_i  +  strength / (2 sum_i w_i) ||W||^2

which is scikit-learn's ``LogisticRegression(C=1/strength)`` divided by a constant. The problems of a stack
differ in the fold of rows that is held out from each. Rows that are read together are sorted by fold, so that a block
of rows is multiplied with the weights of exactly those problems that train on it: one matrix product for all of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from hftl.heads.basis import Basis
from hftl.heads.lbfgs import Solution
from hftl.heads.matrix import Matrix
from hftl.onednn import matmul
from hftl.tasks import Link

NO_FOLD = -1  # of rows that every head trains on
EVERY_ROW = -2  # "held out" by a head that trains on all rows
# A block's logits stay in the cache of a CPU, where they are read several times; a GPU wants work for all its cores.
_BLOCK_LOGITS = {"cpu": 1 << 18}
_BLOCK_LOGITS_ELSEWHERE = 1 << 25
_BLOCK_ROWS = (256, 8192)  # at least, at most
# How far an entry of the tilt may be from the identity's before curvatures are computed in a head's own coordinates.
_NEARLY = 0.25
# Rows that are centred in each pass are still in the cache of a CPU when they are multiplied.
_CENTRED_ROWS = {"cpu": 2048}
_LANES = 16  # float32 numbers of a vector register: matrix products are fastest in multiples of it


@dataclass
class Block:
    """Rows of one fold: features (n, width), of which the last is the bias's, targets, weights (n, 1 or outputs)."""

    fold: int
    rows: Tensor
    features: Tensor
    targets: Tensor
    weights: Tensor


class FoldRows:
    """The training rows in blocks that lie within one fold, ready for the solver.

    Rows that take up to the features' ``resident_bytes`` are kept in the solver's coordinates. Of more rows each pass
    reads the features, a part at a time, and centres them block by block; scales and axes are multiplied into what the
    rows are multiplied with. So no second copy of the features is ever there, and the numbers agree to the rounding of
    float32.

    Args:
        features: (n, dim) floating point, raw, on the device where the solver runs, as all the rest.
        targets: (n,) int64 classes or (n, outputs) float32.
        weights: (n, 1) or (n, outputs) float64.
        folds: (n,) int64, the fold of each row or ``NO_FOLD``.
        basis: the coordinates.
        columns: columns of the logits of all problems together, which bounds the rows of a block.
    """

    def __init__(
        self,
        features: Matrix,
        targets: Tensor,
        weights: Tensor,
        folds: Tensor,
        basis: Basis,
        *,
        columns: int,
    ) -> None:
        self._targets, self._weights, self._basis = targets, weights, basis
        logits = _BLOCK_LOGITS.get(features.device.type, _BLOCK_LOGITS_ELSEWHERE)
        resident = len(features) * (basis.rank + 1) * 4 <= features.resident_bytes
        most = _BLOCK_ROWS[1] if resident else _CENTRED_ROWS.get(features.device.type, _BLOCK_ROWS[1])
        block_rows = min(max(logits // columns, _BLOCK_ROWS[0]), most)
        self._parts = [(part, _spans_by_fold(folds[part.rows], block_rows)) for part in features.parts]
        # What float32 subtracts from float32 is the nearest number to the mean; the rest is corrected in the bias.
        self._centre = basis.mean.float()
        self._rest = (basis.mean - self._centre)[:, None]
        self._inner = basis.rotation / basis.scale[:, None]
        self._resident = list(self._blocks(self._transformed)) if resident else None
        rows, dim = 0 if resident else block_rows, features.shape[1]
        self._rooms = (
            torch.empty(rows, dim, dtype=features.dtype, device=features.device),
            torch.full((rows, dim + 1), float(basis.bias), device=features.device),
        )
        row_weights = weights.mean(1)
        self.count, self.rank = len(features), basis.rank
        self.width = (basis.rank if resident else dim) + 1
        self.total_weight = float(row_weights.sum())
        self.weight_of_fold = {fold: float(row_weights[folds == fold].sum()) for fold in torch.unique(folds).tolist()}

    def __iter__(self) -> Iterator[Block]:
        """The blocks, whose features are to be multiplied with `columns_of` parameters."""
        if self._resident is not None:
            yield from self._resident
        else:
            yield from self._blocks(self._centred)

    def in_axes(self) -> Iterator[Block]:
        """The blocks, whose features are in the solver's coordinates, to the rounding of float32."""
        if self._resident is not None:
            yield from self._resident
        else:
            yield from self._blocks(self._rotated)

    def columns_of(self, parameters: Tensor) -> Tensor:
        """Parameters (rank + 1, m) float64 as what a block's features are multiplied with: (width, m) float32."""
        if self._resident is not None:
            return parameters.float()
        parameters = parameters.double()
        inner = self._inner @ parameters[:-1]
        return torch.cat([inner, parameters[-1:] - self._rest.T @ inner]).float()

    def gradient_of(self, products: Tensor) -> Tensor:
        """The sums of a block's features (m, width) float64, each times a number, as those in the solver's axes."""
        if self._resident is not None:
            return products
        inner = products[:, :-1] - products[:, -1:] * self._rest.T
        return torch.cat([inner @ self._inner, products[:, -1:]], 1)

    def _blocks(self, made: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Block]:
        for part, spans in self._parts:
            read = part.read()
            for fold, places in spans:
                rows = part.numbers(places)
                yield Block(fold, rows, made(read, places), self._targets[rows], self._weights[rows].float())

    def _transformed(self, read: Tensor, places: Tensor) -> Tensor:
        return self._basis.transform(read.index_select(0, places))

    def _centred(self, read: Tensor, places: Tensor) -> Tensor:
        """Features without their means, and the bias's column, (n, dim + 1) float32; the next call writes over them."""
        picked, made = (room[: len(places)] for room in self._rooms)
        torch.index_select(read, 0, places, out=picked)
        torch.sub(picked, self._centre, out=made[:, :-1])
        return made

    def _rotated(self, read: Tensor, places: Tensor) -> Tensor:
        """Features in the solver's coordinates but for a constant that rounding leaves of their means."""
        centred = self._centred(read, places)
        return torch.cat([matmul(centred[:, :-1], self._inner.float()), centred[:, -1:]], 1)


def _spans_by_fold(folds: Tensor, most: int) -> list[tuple[int, Tensor]]:
    """Places of rows (n,) by fold, so many at most together."""
    # Stable, so that the same rows give the same blocks, and sums the same bits.
    order = torch.argsort(folds, stable=True)
    ordered, spans = folds[order], []
    for fold in torch.unique(folds).tolist():
        spans += [(fold, places) for places in torch.split(order[ordered == fold], most)]
    return spans


class Objective:
    """Values, gradients and curvatures of ``k`` linear heads.

    A head's parameters are a (rank + 1, outputs) matrix whose last row is the bias, flattened.

    Args:
        rows: the training rows.
        loss: ``softmax`` with (n,) class targets or ``sigmoid`` with (n, outputs) targets, summed over
            outputs.
        outputs: columns of the logits.
        strength: L2 strength, or (k,) one for each problem.
        hidden: (k, h) int64, the different folds that each problem does not train on, or ``EVERY_ROW``.
        tilt: (k, rank, rank) float32, from the coordinates in which a problem is penalised to those of the rows; None
            where they are the same.
    """

    def __init__(
        self,
        rows: FoldRows,
        loss: Link,
        outputs: int,
        strength: float | Tensor,
        hidden: Tensor,
        tilt: Tensor | None = None,
    ) -> None:
        self.rows, self.loss, self.outputs, self.hidden, self.tilt = rows, loss, outputs, hidden, tilt
        unseen = [sum(rows.weight_of_fold.get(fold, 0.0) for fold in folds) for folds in hidden.tolist()]
        # What each problem trains on: all rows but those of its folds.
        self.total = rows.total_weight - torch.tensor(unseen, dtype=torch.float64, device=hidden.device)
        self.penalty = strength / self.total

    @property
    def rounding(self) -> float:
        """The error of a mean over rows of losses from float32 logits, whose size is some ten units."""
        return float(16 * torch.finfo(torch.float32).eps / self.rows.count**0.5)

    def evaluate(self, theta: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        """Values (k,) and gradients (k, size) in float64 of the given problems at ``theta`` (k, size)."""
        weights = theta.view(len(theta), -1, self.outputs).clone()
        value = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
        products = torch.zeros(len(theta), self.outputs, self.rows.width, dtype=torch.float64, device=theta.device)
        for block, members, logits in self._logits(self.rows, self.columns(theta, problems), problems):
            loss, residual = _loss_and_residual(self.loss, logits, block.targets)
            residual *= block.weights[:, None, :]
            # Logits are float32 because that is what is fast; sums over many rows are not, because L-BFGS compares
            # values that differ in the last digits.
            value[members] += (loss * block.weights[:, None, :]).sum((0, 2), dtype=torch.float64)
            product = matmul(residual.flatten(1).T, block.features)
            products[members] += product.view(len(members), self.outputs, -1).double()
        gradient = self.rows.gradient_of(products.flatten(0, 1)).view(*products.shape[:2], -1).transpose(1, 2)
        if self.tilt is not None:
            back = torch.bmm(self.tilt[problems].transpose(1, 2), gradient[:, :-1].float())
            gradient = torch.cat([back.double(), gradient[:, -1:]], 1)
        total, penalty = self.total[problems], self.penalty[problems]
        weights[:, -1] = 0  # the bias is free
        value = value / total + penalty / 2 * weights.square().sum((1, 2))
        gradient = gradient / total[:, None, None] + penalty[:, None, None] * weights
        return value, gradient.flatten(1)

    def reuse(self, solution: Solution, before: "Objective") -> Solution:
        """What is known at ``solution`` of an objective that differs in the strength only, exact for this one.

        Its curvature pairs are corrected in place: they are the largest thing that the solver holds.
        """
        penalty = self.added_penalty(before)
        for step, change in zip(solution.steps, solution.changes, strict=True):
            change += (penalty * step).float()
        return replace(
            solution,
            value=solution.value + (penalty * solution.x.square()).sum(1) / 2,
            gradient=solution.gradient + penalty * solution.x,
        )

    def added_penalty(self, before: "Objective") -> Tensor:
        """What the Hessian's diagonal (k, size) gains over that of an objective with another strength."""
        size = (self.rows.rank + 1) * self.outputs
        penalty = (self.penalty - before.penalty)[:, None].repeat(1, size)
        penalty[:, size - self.outputs :] = 0  # the bias is free
        return penalty

    def curvature(self, theta: Tensor) -> Tensor:
        """The diagonal of the Hessian (k, size) of all problems at ``theta`` (k, size)."""
        diagonal = torch.zeros_like(theta.view(len(theta), -1, self.outputs))
        problems = torch.arange(len(theta), device=theta.device)
        # Where scales differ much between heads, what is nearly diagonal in one's coordinates is not so in another's.
        far = {problem: torch.zeros_like(diagonal[0, :-1]) for problem in self._tilted_far()}
        columns = self.in_coordinates(theta).float().transpose(0, 1)
        for block, members, logits in self._logits(self.rows.in_axes(), columns, problems):
            probabilities = logits.softmax(-1) if self.loss == "softmax" else logits.sigmoid()
            variance = probabilities * (1 - probabilities) * block.weights[:, None, :]
            product = matmul(variance.flatten(1).T, block.features.square())
            diagonal[members] += product.view(len(members), self.outputs, -1).transpose(1, 2).double()
            for place, problem in enumerate(members.tolist()):
                if problem in far and self.tilt is not None:
                    own = matmul(block.features[:, :-1], self.tilt[problem]).square()
                    far[problem] += matmul(variance[:, place].T, own).T.double()
        if self.tilt is not None:
            # As if the Hessian were diagonal in the coordinates of the rows, which it nearly is.
            diagonal[:, :-1] = torch.bmm(self.tilt.square().transpose(1, 2), diagonal[:, :-1].float()).double()
        for problem, own in far.items():
            diagonal[problem, :-1] = own
        diagonal /= self.total[:, None, None]
        diagonal[:, :-1] += self.penalty[:, None, None]
        return diagonal.flatten(1)

    def _tilted_far(self) -> list[int]:
        """Problems whose own coordinates are far from those of the rows."""
        if self.tilt is None:
            return []
        identity = torch.eye(self.tilt.shape[1], device=self.tilt.device)
        return [p for p, tilt in enumerate(self.tilt) if float((tilt - identity).abs().amax()) > _NEARLY]

    def in_coordinates(self, theta: Tensor, problems: Tensor | None = None) -> Tensor:
        """Heads (k, size) of all or some problems, in the coordinates of the rows: (k, rank + 1, outputs)."""
        weights = theta.view(len(theta), -1, self.outputs)
        if self.tilt is None:
            return weights
        tilt = self.tilt if problems is None else self.tilt[problems]
        return torch.cat([torch.bmm(tilt, weights[:, :-1].float()).to(theta.dtype), weights[:, -1:]], dim=1)

    def columns(self, theta: Tensor, problems: Tensor | None = None) -> Tensor:
        """Heads (k, size) of all or some problems as what the rows are multiplied with: (width, k, outputs) float32."""
        weights = self.in_coordinates(theta, problems).transpose(0, 1).flatten(1)
        return self.rows.columns_of(weights).view(-1, len(theta), self.outputs)

    def _logits(
        self, blocks: Iterable[Block], columns: Tensor, problems: Tensor
    ) -> Iterator[tuple[Block, Tensor, Tensor]]:
        """For each block: the members of ``problems`` that train on it, and their logits (n, members, outputs)."""
        hidden = self.hidden[problems]
        chosen: dict[int, tuple[Tensor, Tensor]] = {}  # by fold
        for block in blocks:
            if block.fold not in chosen:
                members = torch.nonzero((hidden != block.fold).all(1)).flatten()
                flat = columns[:, members].flatten(1)
                chosen[block.fold] = members, F.pad(flat, (0, -flat.shape[1] % _LANES))
            members, flat = chosen[block.fold]
            if len(members):
                logits = matmul(block.features, flat)[:, : len(members) * self.outputs]
                yield block, members, logits.view(-1, len(members), self.outputs)


def _loss_and_residual(loss: Link, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (n, k, 1 or outputs) and their derivatives by the logits (n, k, outputs)."""
    if loss == "softmax":
        log_probabilities = torch.log_softmax(logits, -1)
        index = targets[:, None, None].expand(-1, logits.shape[1], 1)
        losses = -log_probabilities.gather(-1, index)
        residual = log_probabilities.exp_()
        residual.scatter_add_(-1, index, torch.full_like(losses, -1.0))
        return losses, residual
    truth = targets[:, None, :]
    return F.softplus(logits) - truth * logits, logits.sigmoid() - truth

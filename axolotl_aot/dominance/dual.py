"""Entropic transport solved in its dual: Sinkhorn's steps, then Newton's.

The dual of min <gamma, C> + eps KL(gamma | a x b) is the maximum of <f, a> + <g, b> over potentials f and g
for which gamma = exp((f + g - C) / eps) a b has the marginals a and b. Here f is always the one that gives
gamma's rows exactly the masses a. What is left is a concave function of g, whose derivative is the residual
b - c, c the sums of gamma's columns. By g / eps its second derivative is

    -H,  H = diag(c) - gamma^T diag(1 / a) gamma.

Sinkhorn's step is to add log(b / c) to g / eps. Where it hardly moves, Newton's H^-1 (b - c) does (as in
Brauer et al., "A Sinkhorn-Newton method for entropic optimal transport", arXiv 1710.06635).
"""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_SINKHORN_STEPS = 20
MAX_NEWTON_STEPS = 50
MAX_HALVINGS = 30  # of a step of Newton's that is too long
ENOUGH = 1e-4  # of what a step of Newton's promises, which it has to gain
# Of g / eps: the longest step; and by how much it may change until the kernel is computed anew, so that
# neither overflows (Schmitzer, arXiv 1610.06519).
ABSORB = 30.0
FORCING = 0.3  # to which share conjugate gradients reduce Newton's residual; less would not save steps enough
# How many of their iterations, two products with a matrix each, take as long as a factorisation of H does: so
# many for each column.
ITERATIONS_PER_COLUMN = 0.2
MIN_ITERATIONS = 20
RIDGE = 1e-12  # on H, scaled: above rounding, so that it can be factorised


class Scaled(NamedTuple):
    """gamma = diag(x) kernel diag(y), whose rows have the masses a; columns: its sums of columns, (m,)."""

    x: Tensor
    y: Tensor
    columns: Tensor


class Dual:
    """The dual at one pair of potentials, and the ascent from there.

    cost: (n, m), float64. a, b: masses, positive, each of sum 1. f, g: where it begins; nowhere may their sum
    exceed the cost, and in each row and column it must reach it somewhere, so that the kernel neither
    overflows nor vanishes. entropy: eps.
    """

    def __init__(self, cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, entropy: float):
        self._cost, self._a, self._b, self._entropy = cost, a, b, entropy
        self._factorise = False  # from the first step on that takes conjugate gradients too long
        self._set_potentials(f, g)

    @property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """f (n,) and g (m,)."""
        return self._f + self._entropy * self._at.x.log(), self._g + self._entropy * self._at.y.log()

    @property
    def plan(self) -> Tensor:
        """gamma, (n, m), with rows of masses a and columns of about b."""
        return self._at.x[:, None] * self._kernel * self._at.y

    def ascend(self, tolerance: float) -> bool:
        """Until the absolute differences of the columns' masses add up to less; whether they do."""
        for _ in range(MAX_SINKHORN_STEPS):
            if self._error(self._at) < tolerance:
                return True
            self._move_to(self._scaled(self._at.y * self._b / self._at.columns))
        for _ in range(MAX_NEWTON_STEPS):
            if self._error(self._at) < tolerance:
                return True
            reached = self._newton_step()
            if reached is None:
                break
            self._move_to(reached)
        return self._error(self._at) < tolerance

    def _error(self, at: Scaled) -> float:
        return (self._b - at.columns).abs().sum().item()

    # --- Where it stands ---------------------------------------------------------------------

    def _set_potentials(self, f: Tensor, g: Tensor) -> None:
        self._f, self._g = f, g
        exponent = (f[:, None] + g - self._cost) / self._entropy
        self._kernel = exponent.exp_().mul_(self._a[:, None]).mul_(self._b)
        self._at = self._scaled(torch.ones_like(self._b))

    def _scaled(self, y: Tensor) -> Scaled:
        x = self._a / (self._kernel @ y)
        return Scaled(x, y, y * (x @ self._kernel))

    def _move_to(self, at: Scaled) -> None:
        self._at = at
        if max(at.x.log().abs().max().item(), at.y.log().abs().max().item()) > ABSORB:
            self._set_potentials(*self.potentials)

    # --- Newton's step -----------------------------------------------------------------------

    def _newton_step(self) -> Scaled | None:
        """Where it leads, shortened until enough is gained; None where nothing is."""
        residual = self._b - self._at.columns
        direction = self._direction(residual)
        if direction is None:
            return None
        promised = (residual @ direction).item()
        size = min(1.0, ABSORB / direction.abs().max().item())
        for _ in range(MAX_HALVINGS):
            reached = self._scaled(self._at.y * (size * direction).exp())
            gain = self._a @ (reached.x / self._at.x).log() + size * (self._b @ direction)
            # close to the end the gain is below its own rounding
            if gain >= ENOUGH * size * promised or self._error(reached) < self._error(self._at) / 2:
                return reached
            size /= 2
        return None

    def _direction(self, residual: Tensor) -> Tensor | None:
        """H^-1 residual, (m,): by conjugate gradients while they are quicker than a factorisation.

        H is scaled to diag(c)^-1/2 H diag(c)^-1/2 = 1 - half^T half.
        """
        x, y, columns = self._at
        scale = columns.rsqrt()
        half = ((x * self._a.rsqrt())[:, None] * self._kernel).mul_(y * scale)
        residual = scale * residual
        found = None if self._factorise else _by_conjugate_gradients(half, residual)
        if found is None:
            self._factorise = True
            found = _by_factorisation(half, residual, columns.sqrt())
        return None if found is None else scale * found


def _by_conjugate_gradients(half: Tensor, residual: Tensor) -> Tensor | None:
    """(1 - half^T half)^-1 residual to `FORCING`; None where that takes too many iterations."""
    found, rest, along = torch.zeros_like(residual), residual, residual
    size = (rest @ rest).item()
    enough = FORCING**2 * size
    for _ in range(max(MIN_ITERATIONS, int(ITERATIONS_PER_COLUMN * len(residual)))):
        product = along - (half @ along) @ half
        curvature = (along @ product).item()
        if not curvature > 0:  # rounding: along some direction the matrix is next to 0
            return None
        found = torch.add(found, along, alpha=size / curvature)
        rest = torch.sub(rest, product, alpha=size / curvature)
        before, size = size, (rest @ rest).item()
        if size <= enough:
            return found
        along = torch.add(rest, along, alpha=size / before)
    return None


def _by_factorisation(half: Tensor, residual: Tensor, constants: Tensor) -> Tensor | None:
    """(1 - half^T half)^-1 residual by Cholesky's; None where the matrix is singular beyond rounding.

    constants: along which it is 0, and the residual, too; a change of all potentials alike changes nothing.
    """
    matrix = -(half.T @ half)
    matrix.diagonal().add_(1 + RIDGE)
    matrix.addr_(constants, constants)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if failed else torch.cholesky_solve(residual[:, None], factor)[:, 0]

"""Stochastic dominance of one sample of rewards over another, as a differentiable loss.

Source: Melnyk et al., "Distributional Preference Alignment of LLMs via Optimal Transport",
NeurIPS 2024, arXiv 2406.05882.

Notation: U is the empirical measure of `upper`, V that of `lower`; Q_U and Q_V are their quantile
functions, step functions on (0, 1]. U dominates V to first order when Q_U(t) >= Q_V(t) for every t,
to second order when the integral of Q_U - Q_V from 0 to p is non-negative for every p.

This package imports torch and scipy only, nothing of the project, and knows neither axolotl nor a model.
Everything is computed in float32, or in float64 where a sample is float64; the plan of a coupling in
float64. The names below are the public ones.
"""

from axolotl_aot.dominance.anchor import ANCHOR_METRICS, anchor_loss
from axolotl_aot.dominance.coupling import RANK_DISPLACEMENT, Coupled, coupled
from axolotl_aot.dominance.losses import dominance_loss
from axolotl_aot.dominance.orders import DOMINANCES, Order
from axolotl_aot.dominance.penalties import PENALTIES, SMOOTHABLE_PENALTIES
from axolotl_aot.dominance.sorting import SORTS
from axolotl_aot.dominance.steps import QuantileSteps, quantile_steps
from axolotl_aot.dominance.violations import Violation, violation

__all__ = [
    "ANCHOR_METRICS",
    "DOMINANCES",
    "PENALTIES",
    "RANK_DISPLACEMENT",
    "SMOOTHABLE_PENALTIES",
    "SORTS",
    "Coupled",
    "Order",
    "QuantileSteps",
    "Violation",
    "anchor_loss",
    "coupled",
    "dominance_loss",
    "quantile_steps",
    "violation",
]

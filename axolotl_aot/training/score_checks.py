"""Checks of scores before they are used: finite, and without rewards where nothing was trained yet."""

from collections.abc import Collection

from torch import Tensor

from axolotl_aot.training.objective import Scores

CAUSES = {
    "policy": "training has diverged (lower learning_rate, or set max_grad_norm), or fp16 "
    "overflows (use bf16)",
    "reference": "the base model overflows in this precision (use bf16 or fp32 in place of fp16) or its "
    "weights hold such values",
}

# Where the reference's log-probabilities come from, and why they may not be the policy's.
REFERENCE_CAUSES = {
    "adapter": "an adapter that does not begin as the base model (peft_init_lora_weights: use the default)",
    "start": "a model that does not compute the same twice, as the reference is a copy of the adapter in "
    "lora_model_dir",
    "model": "a reference that was not loaded as the policy was (by a plugin that changes one of the two), "
    "or a model that does not compute the same twice",
    "file": "with precompute_ref_log_probs, a file of another model's (delete aot_references in "
    "dataset_prepared_path)",
}


def require_finite(scores: Scores, step: int) -> None:
    """Raises FloatingPointError where log-probabilities are NaN or infinite.

    step: the optimizer step, from 1, for the message.
    """
    for name, values in (("reference", scores.reference), ("policy", scores.policy)):
        bad = int((~values.isfinite()).sum())
        if bad:
            raise FloatingPointError(
                f"step {step}: {bad} of {len(values)} log-probabilities under the {name} are NaN or "
                f"infinite. Likely cause: {CAUSES[name]}."
            )


def require_no_rewards(scores: Scores, epsilon: float, sources: Collection[str]) -> None:
    """Before the first step policy and reference are the same model; raises RuntimeError where they differ.

    epsilon: of the floating-point type that the models compute in. sources: those of `REFERENCE_CAUSES` that
    the reference's log-probabilities come from.
    """
    apart = difference(scores.policy, scores.reference, epsilon)
    if apart:
        causes = ", or ".join(REFERENCE_CAUSES[source] for source in sources)
        raise RuntimeError(
            "policy and reference differ before any training: their log-probabilities are "
            f"{apart}. Likely cause: {causes}."
        )


def difference(logprobs: Tensor, others: Tensor, epsilon: float) -> str | None:
    """How far two scorings of the same completions are apart; None where rounding explains it."""
    apart, size = (logprobs - others).abs().sum(), others.abs().sum()
    if apart <= max(1e-4, 4 * epsilon) * (size + len(others)):
        return None
    return f"{apart:.3g} nats apart, of {size:.3g}"

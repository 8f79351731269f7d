"""What the user asks of `axolotl aot-sample`, besides the model and the prompts."""

from pathlib import Path
from typing import NamedTuple

from axolotl_aot.errors import AOTConfigError


class Settings(NamedTuple):
    """Options of the command, by their names there.

    adapter: an adapter or a whole model; None for what the YAML has trained. base: the untrained model.
    n: answers a prompt. max_new_tokens: None for all that `sequence_len` leaves. batch_size: sequences at
    once; None for the YAML's.
    """

    adapter: Path | None = None
    base: bool = False
    n: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 42
    batch_size: int | None = None
    reward: str | None = None
    reward_model: str | None = None
    engine: str = "transformers"
    overwrite: bool = False


def require_agreement(settings: Settings) -> None:
    """Raises AOTConfigError for options that contradict each other."""
    if settings.base and settings.adapter is not None:
        raise AOTConfigError(
            f"--base and --adapter {settings.adapter}: the answers are of the untrained model, or of what "
            "was trained; remove one of the two"
        )
    if not settings.temperature and settings.n != 1:
        raise AOTConfigError(
            f"--temperature 0 with --n {settings.n}: each time the likeliest token is taken, so that all "
            "answers to a prompt would be equal; set --n 1, or a temperature above 0"
        )
    if not settings.temperature and settings.top_p != 1:
        raise AOTConfigError(
            f"--temperature 0 with --top-p {settings.top_p:g}: nothing is drawn there; remove one of the two"
        )
    if settings.reward is not None and settings.reward_model is not None:
        raise AOTConfigError(
            f"--reward {settings.reward} and --reward-model {settings.reward_model}: answers have one score; "
            "remove one of the two"
        )

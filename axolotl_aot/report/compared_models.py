"""The trained models of a comparison: found in their folders, loaded one after the other, and scored."""

from collections.abc import Callable, Mapping
from pathlib import Path

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from axolotl_aot import config
from axolotl_aot.errors import AOTConfigError
from axolotl_aot.scoring.models import load_adapter, load_whole_model
from axolotl_aot.scoring.reference_cache import TokenizedAnswer
from axolotl_aot.scoring.scorer import score_sequences
from axolotl_aot.trained.run_config import sequences_at_once
from axolotl_aot.trained.weights import kind_of, matmul_dtype, nothing_in, warn_of_another_base

LOG = get_logger(__name__)

REFERENCE = "reference"  # the base model's name among the models


def trained_models(name: str, own: Path, others: Mapping[str, Path], named: bool) -> dict[str, Path]:
    """The folders of trained models, by name; the YAML's own is left out if it has trained nothing."""
    if name in others:
        raise AOTConfigError(
            f"--compare {name}={others[name]}: the YAML's own run has this name; choose another"
        )
    if REFERENCE in others:
        raise AOTConfigError(
            f"--compare {REFERENCE}=...: that is what the base model is called; choose another"
        )
    for other, folder in others.items():
        if kind_of(folder) is None:
            raise AOTConfigError(f"--compare {other}={folder}: {nothing_in(folder)}")
    if kind_of(own) is not None:
        return {name: own, **others}
    if named or not others:
        key = "--adapter" if named else "output_dir"
        raise AOTConfigError(
            f"{key} {own}: {nothing_in(own)}; train first, or name what is trained with --adapter"
        )
    LOG.warning(f"{own} holds nothing trained; only what --compare names is in the report")
    return dict(others)


def score_models(
    cfg: DictDefault,
    model: PreTrainedModel,
    folders: dict[str, Path],
    sequences: dict[bytes, TokenizedAnswer],
    ask: Callable[[str, PreTrainedModel | PeftModel], None] = lambda name, model: None,
) -> dict[str, dict[bytes, float]]:
    """Log-probabilities under the base model and under each trained one; one pass each.

    ask: is given each model's name and the model, once it is scored; the base model first.
    """
    common = {
        "sequences_at_once": sequences_at_once(cfg),
        "matmul_dtype": matmul_dtype(cfg),
        "padding_free": config.settings(cfg).aot_padding_free,
    }
    scores = {REFERENCE: score_sequences(model, sequences, description=f"Scoring {REFERENCE}", **common)}
    ask(REFERENCE, model)
    adapters = {name: folder for name, folder in folders.items() if kind_of(folder) == "adapter"}
    _require_no_biases(adapters, len(folders))
    for name, folder in folders.items():  # first, as an adapter changes the layers of the base model
        if name not in adapters:
            whole = load_whole_model(model, str(folder)).to(model.device)
            scores[name] = score_sequences(whole, sequences, description=f"Scoring {name}", **common)
            ask(name, whole)
    policy: PreTrainedModel | PeftModel = model
    for number, (name, folder) in enumerate(adapters.items()):
        warn_of_another_base(name, folder, cfg.base_model, "scored")
        policy = load_adapter(policy, str(folder), f"number_{number}")  # PEFT refuses some names
        if number:
            policy.delete_adapter(f"number_{number - 1}")
        scores[name] = score_sequences(policy, sequences, description=f"Scoring {name}", **common)
        ask(name, policy)
    return {name: scores[name] for name in (REFERENCE, *folders)}


def _require_no_biases(adapters: dict[str, Path], models: int) -> None:
    for name, folder in adapters.items():
        bias = PeftConfig.from_pretrained(str(folder)).to_dict().get("bias", "none")
        if bias != "none" and models > 1:
            raise AOTConfigError(
                f"{name} ({folder}) was trained with bias: {bias}, which changes the base model that the "
                "others are scored on; make a report of it alone"
            )

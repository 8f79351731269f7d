"""The settings that are compared: a method with its keys of the YAML.

Their `rl_beta` and learning rate are not theirs: `choices` has them. Imports `benchmarks.alignment.plan`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.alignment.plan import BALANCED


@dataclass(frozen=True)
class Setting:
    """name: in tables and in choices.json. method: `rl` of the YAML. keys: its further ones."""

    name: str
    method: str
    keys: Mapping[str, Any] = field(default_factory=dict)


ENTROPIC = {"aot_entropy": 1.5}
ANCHOR = {"aot_anchor": 1, "aot_penalty": "sigmoid"}
DOUBTED = {**ANCHOR, "aot_doubt_labels": True}

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("dpo", "dpo"),
        Setting("ipo", "ipo"),
        Setting("kto", "kto"),
        Setting("apo_zero", "dpo", {"dpo_loss_type": ["apo_zero"]}),
        Setting("aot", "aot"),
        Setting("aot_unpaired", "aot_unpaired"),
        Setting("aot_unpaired, entropic", "aot_unpaired", ENTROPIC),
        Setting("aot_unpaired, anchor", "aot_unpaired", ANCHOR),
        Setting("aot_unpaired, doubted", "aot_unpaired", DOUBTED),
    )
}


def balanced_kto(share: float) -> Setting:
    """KTO with a weight that makes up for the positives' number. share: of the positives, below 1."""
    return Setting(BALANCED, "kto", {"kto_desirable_weight": round((1 - share) / share, 6)})

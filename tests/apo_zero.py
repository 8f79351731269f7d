"""A plugin for axolotl's own `rl: kto`, by which TRL's trainer takes the loss of APO-zero."""

from axolotl.integrations.base import BasePlugin


class Plugin(BasePlugin):
    """axolotl has no key for it."""

    def get_training_args(self, cfg):
        return (
            {"loss_type": "apo_zero_unpaired", "train_sampling_strategy": "random"} if cfg.rl == "kto" else {}
        )

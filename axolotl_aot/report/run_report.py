"""The report of a training run, written when the run has ended and is saved."""

import math
from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from axolotl_aot import __version__, config
from axolotl_aot.report.examples import examples
from axolotl_aot.report.page import write_report
from axolotl_aot.report.runs import ScoredRun
from axolotl_aot.report.statistics import report

LOG = get_logger(__name__)

FOLDER = "dominance"  # in output_dir
SHOWN_KEYS = (
    "base_model",
    "adapter",
    "lora_model_dir",
    "rl_beta",
    "learning_rate",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "num_epochs",
    "max_steps",
    "seed",
    "output_dir",
)


def write_run_report(cfg: DictDefault, scored: ScoredRun) -> None:
    """Write the report of a run that has ended and is saved; says where it is, or why there is none.

    axolotl has closed the process group by then: its logger must not ask which process this is, which is
    the main one, as only that one has a `ScoredRun`.
    """
    folder = Path(cfg.output_dir) / FOLDER
    try:
        shown = {} if scored.dataset is None else examples(scored.run, scored.dataset, scored.tokenizer)
        numbers = report(
            [scored.run],
            source=scored.source,
            settings=settings_shown(cfg),
            history=scored.history,
            examples={scored.run.name: shown} if shown else None,
            answers={scored.run.name: scored.answers} if scored.answers else None,
        )
        page = write_report(folder, numbers)
    except (Exception, KeyboardInterrupt) as error:
        LOG.warning(
            f"no dominance report ({type(error).__name__}: {error}); the model is saved, and `axolotl "
            f"aot-report {cfg.axolotl_config_path or 'CONFIG'}` makes a report of it",
            main_process_only=False,
        )
        return
    run = numbers["runs"][scored.run.name]
    verdict = run["comparisons"]["rewards"]["after"]["first_order"]["verdict"]
    changes = run["changes"]
    say = LOG.warning if changes["displaced"] else LOG.info
    reference = run["reference"].capitalize()
    say(
        f"Rewards: {verdict}. {reference}: {changes['base_model']}. Dominance report: {page}",
        main_process_only=False,
    )


def settings_shown(cfg: DictDefault) -> dict[str, Any]:
    """What a reader of the report needs to know of the YAML."""
    shown = {"rl": config.active_rl(cfg), **{key: cfg[key] for key in SHOWN_KEYS if cfg[key] is not None}}
    shown = {**shown, **config.settings(cfg).model_dump(), "axolotl-aot": __version__}
    # JSON has no infinity, YAML has
    return {key: ".inf" if value == math.inf else value for key, value in shown.items()}

"""The YAML's `aot_` keys, and the translation of `rl: aot...` into what axolotl knows.

axolotl's `rl:` is a closed list that its validation, data pipeline, model loader and trainer builder
each check again. So `rl: aot` is rewritten to `rl: dpo` and `rl: aot_unpaired` to `rl: kto` before
validation, with this package's trainer in `trainer_cls`, which is axolotl's own key for a custom
trainer. All that the YAML alone shows to be wrong stops here, before a model is loaded.

The options of `datasets:` and `test_datasets:` would not survive that validation: axolotl's schemas for
`dpo` and `kto` drop what they do not know. They are checked here, handed on whole under `ENTRIES`, and
axolotl is left with the path and the type.
"""

import logging
from collections.abc import MutableMapping
from difflib import get_close_matches
from enum import Enum
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, Field, ValidationError

from axolotl_aot.checks import check_best_model, check_beta, check_parallelism, check_report_samples
from axolotl_aot.data.types import parse
from axolotl_aot.dominance import DOMINANCES, PENALTIES, SMOOTHABLE_PENALTIES, SORTS
from axolotl_aot.errors import AOTConfigError, closest
from axolotl_aot.unread_keys import check_keys

LOG = logging.getLogger(__name__)

PREFIX = "aot_"
SCOPES = ("effective_batch", "micro_batch")
DEFAULT_REPORT_SAMPLES = 8
ENTRIES = "aot_entries"  # what the plugin has read of the keys of DATA; not for users to write
DATA = ("datasets", "test_datasets")
LORA_KERNELS = "aot_lora_kernels"  # axolotl's keys of its LoRA kernels; see `training/lora_kernels.py`


class AOTArgs(BaseModel):
    """The `aot_` keys of the YAML, each with its type, range, default and description.

    `python docs/keys_table.py` writes the descriptions into `docs/configuration.md`.
    """

    aot_penalty: Literal[tuple(PENALTIES)] = Field(
        default="logistic",
        description="h(z) of a difference z of rewards, with beta for `rl_beta`: `logistic` "
        "log(1 + exp(-beta z)), `squared_hinge` max(0, beta - z)^2, `least_squares` (beta - z)^2, `sigmoid` "
        "1 / (1 + exp(beta z)), which is bounded and not convex.",
    )
    aot_entropy: float = Field(
        default=0.0,
        ge=0,
        description="What is compared with what. 0: the sort, rank by rank. Above: an entropic coupling, "
        "with this regularisation in units of h. `.inf`: all pairs. First order and hard sort only.",
    )
    aot_anchor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Weight of \"chosen rewards dominate the base model's own, which dominate the rejected "
        'ones", in place of the comparison of chosen with rejected. At 1 with `aot_penalty: sigmoid` it is '
        "APO-zero (half of TRL's `apo_zero`).",
    )
    aot_doubt_labels: bool = Field(
        default=False,
        description="Needs `aot_anchor`. An answer counts the less, the more answers of the other label the "
        "rewards put on its wrong side (at least a twentieth), so that wrong labels count little.",
    )
    aot_scope: Literal[SCOPES] = Field(
        default="effective_batch",
        description="What is sorted. `effective_batch`: all samples of an optimizer step, over accumulation "
        "steps and processes. `micro_batch`: each process's micro-batch alone, as TRL does.",
    )
    aot_dominance: Literal[tuple(DOMINANCES)] = Field(
        default="first",
        description="Order of dominance. `first`: of the quantiles themselves. `second`: of their running "
        "integral, which forgives low quantiles that higher mass makes up for.",
    )
    aot_sort: Literal[tuple(SORTS)] = Field(
        default="hard",
        description="`hard`: the exact sort. `soft`: a differentiable one (arXiv 2002.08871), which pulls in "
        "rewards that lie far out.",
    )
    aot_soft_sort_strength: float | None = Field(
        default=None,
        gt=0,
        description="Regularisation of the soft sort. Where sorted rewards lie more than 1 / strength nats "
        "apart they are pulled together around their mean; towards 0 it is the hard sort. By default "
        "1 / strength is twice the distance of evenly spaced rewards of the same spread.",
    )
    aot_label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Assumed share of wrong labels; `aot_penalty: logistic` only.",
    )
    aot_stratify: bool = Field(
        default=True,
        description="`rl: aot_unpaired` only. `true`: deal the labels out evenly over the effective batches, "
        "each answer still once an epoch. `false`: plain shuffling.",
    )
    aot_padding_free: bool | None = Field(
        default=None,
        description="Put sequences together without padding, and completions of one prompt behind one copy "
        "of it; by default wherever attention backend and model can. `true` insists on it (an error where "
        "they cannot), `false` pads.",
    )
    aot_report: bool = Field(
        default=True,
        description="Write the dominance report into `<output_dir>/dominance` when training ends.",
    )
    aot_report_samples: int | None = Field(
        default=None,
        ge=0,
        description="To how many evaluation prompts the report shows the answers before and after training; "
        f"0 for none. By default {DEFAULT_REPORT_SAMPLES} where there is an evaluation set.",
    )
    aot_max_tokens_per_micro_batch: int | None = Field(
        default=None,
        gt=0,
        description="Cut each process's share of the effective batch into as few micro-batches as hold this "
        "many tokens each (padding included), in place of `micro_batch_size` samples each. By default, on a "
        "GPU, the tokens of `micro_batch_size` samples of the longest sequence. "
        "`aot_scope: effective_batch` only.",
    )

    def samples_in_report(self, evaluates: bool) -> int:
        """`aot_report_samples`, or its default; evaluates: whether there is an evaluation set."""
        if self.aot_report_samples is None:
            return DEFAULT_REPORT_SAMPLES if evaluates else 0
        return self.aot_report_samples


class AOTInput(AOTArgs):
    """What axolotl's schema gets: the user's keys, and the plugin's own."""

    aot_entries: dict[str, list[dict[str, Any]]] | None = Field(
        default=None,
        description="Set by the plugin: the entries of `datasets` and `test_datasets`, with all options.",
    )
    aot_lora_kernels: dict[str, bool] | None = Field(
        default=None,
        description="Set by the plugin: axolotl's keys `lora_*_kernel`, which it would act on too early.",
    )


class RLType(NamedTuple):
    """How one `rl:` of this package runs on axolotl."""

    axolotl_rl: str
    trainer_cls: str
    settings: dict[str, Any]  # what axolotl's type asks of the YAML and AOT has an answer to


RL_TYPES = {
    "aot": RLType("dpo", "axolotl_aot.training.trainers.AOTTrainer", {}),
    "aot_unpaired": RLType(
        "kto", "axolotl_aot.training.trainers.AOTUnpairedTrainer", {"remove_unused_columns": False}
    ),
}

# Names under which other projects know the two types.
RL_ALIASES = {"aot_pair": "aot_unpaired", "aot_paired": "aot"}


def translate(cfg: MutableMapping[str, Any]) -> str | None:
    """Check a raw axolotl config and rewrite its `rl: aot...`, in place, into what axolotl knows.

    A config that was translated before (axolotl registers plugins again on Ray workers) is left as
    it is. Returns "aot", "aot_unpaired", or None where the config asks for neither.

    Raises:
        AOTConfigError: anything wrong with an `aot_` key, or a key that AOT would have to ignore.
    """
    rl = active_rl(cfg) or _declared_rl(cfg)
    if rl is None:
        _refuse_orphans(cfg)
        return None
    # then it is axolotl's own again, with what axolotl has added to it
    translated = ENTRIES in cfg and active_rl(cfg) is not None
    settings(cfg)
    check_beta(cfg)
    check_parallelism(cfg, rl)
    if not translated:
        check_keys(cfg, rl, AOTInput)
    check_best_model(cfg)
    check_report_samples(cfg)
    if rl == "aot" and cfg.get("aot_stratify") is not None:
        LOG.warning("aot_stratify has no effect with `rl: aot`: a pair has both labels")
    target = RL_TYPES[rl]
    for key, value in target.settings.items():
        if cfg.get(key) not in (None, value):
            raise AOTConfigError(f"`{key}: {cfg[key]}`: rl: {rl} needs `{key}: {value}`")
    if ENTRIES not in cfg:
        _set_entries(cfg, rl)
    cfg.update(target.settings, rl=target.axolotl_rl, trainer_cls=target.trainer_cls)
    return rl


def _set_entries(cfg: MutableMapping[str, Any], rl: str) -> None:
    """Check the data sets' entries, put them under `ENTRIES`, and leave axolotl what it knows of them."""
    entries = {}
    for key in DATA:
        raw = cfg.get(key)
        if raw is None:
            continue
        if not isinstance(raw, list):
            raise AOTConfigError(f"`{key}: {raw}`: must be a list of entries, each with `path` and `type`")
        parsed = [parse(rl, entry, f"{key}[{i}]") for i, entry in enumerate(raw)]
        entries[key] = [entry.model_dump(exclude_unset=True, exclude_none=True) for entry in parsed]
        cfg[key] = [{"path": entry.path, "type": entry.type, "split": entry.split} for entry in parsed]
    cfg[ENTRIES] = entries


def active_rl(cfg: MutableMapping[str, Any]) -> str | None:
    """Which of `RL_TYPES` a translated config runs; None for any other config."""
    for name, rl_type in RL_TYPES.items():
        if cfg.get("trainer_cls") == rl_type.trainer_cls:
            return name
    return None


def settings(cfg: MutableMapping[str, Any]) -> AOTArgs:
    """The config's `aot_` keys, checked, with defaults for those that are absent or empty.

    Raises:
        AOTConfigError: an unknown key, a value of the wrong type or range, or two that contradict.
    """
    own = {ENTRIES, LORA_KERNELS} if active_rl(cfg) else set()
    given = {k: v for k, v in cfg.items() if str(k).startswith(PREFIX) and v is not None and k not in own}
    for key in given:
        if key not in AOTArgs.model_fields:
            raise AOTConfigError(f"`{key}` is not a key of axolotl-aot.{closest(key, AOTArgs.model_fields)}")
    try:
        args = AOTArgs(**given)
    except ValidationError as error:
        raise AOTConfigError("; ".join(_describe(e) for e in error.errors())) from None
    if args.aot_label_smoothing and args.aot_penalty not in SMOOTHABLE_PENALTIES:
        raise AOTConfigError(
            f"`aot_label_smoothing: {args.aot_label_smoothing}` with `aot_penalty: "
            f"{args.aot_penalty}`: smoothing is defined for {', '.join(SMOOTHABLE_PENALTIES)} only; "
            "remove one of the two"
        )
    _require_a_coupling(args)
    if args.aot_max_tokens_per_micro_batch and args.aot_scope != "effective_batch":
        raise AOTConfigError(
            f"`aot_max_tokens_per_micro_batch: {args.aot_max_tokens_per_micro_batch}` with `aot_scope: "
            f"{args.aot_scope}`: there the loss depends on how the batch is cut; remove one of the two"
        )
    if args.aot_report_samples and not args.aot_report:
        raise AOTConfigError(
            f"`aot_report_samples: {args.aot_report_samples}` with `aot_report: false`: the answers are "
            "part of the report; remove one of the two"
        )
    if args.aot_soft_sort_strength is not None and args.aot_sort != "soft":
        LOG.warning("aot_soft_sort_strength has no effect without `aot_sort: soft`")
    return args


def _require_a_coupling(args: AOTArgs) -> None:
    """Nothing is asked of the comparison of both samples, or of the anchor, that the others would ignore."""
    asked = {
        "aot_dominance": args.aot_dominance != "first",
        "aot_sort": args.aot_sort != "hard",
        "aot_label_smoothing": bool(args.aot_label_smoothing),
        "aot_entropy": bool(args.aot_entropy),
    }
    for key in ("aot_dominance", "aot_sort"):
        if args.aot_entropy and asked[key]:
            raise AOTConfigError(
                f"`{key}: {getattr(args, key)}` with `aot_entropy: {args.aot_entropy:g}`: an entropic "
                "coupling replaces the sort, whose quantiles this key is about; remove one of the two"
            )
    if args.aot_doubt_labels and not args.aot_anchor:
        raise AOTConfigError(
            "`aot_doubt_labels: true` with `aot_anchor: 0`: it changes how much answers count in the anchor, "
            "which is off; set `aot_anchor: 1` and `aot_penalty: sigmoid`, or remove it"
        )
    for key, is_asked in asked.items():
        if args.aot_anchor == 1 and is_asked:
            raise AOTConfigError(
                f"`{key}: {getattr(args, key)}` with `aot_anchor: 1`: there chosen and rejected answers are "
                "compared with the base model alone, so that it has no effect; remove it, or set a smaller "
                "aot_anchor"
            )


def _declared_rl(cfg: MutableMapping[str, Any]) -> str | None:
    rl = cfg.get("rl")
    rl = rl.value if isinstance(rl, Enum) else rl
    if rl in RL_TYPES:
        if cfg.get("trainer_cls"):
            raise AOTConfigError(
                f"`trainer_cls: {cfg['trainer_cls']}` with `rl: {rl}`: AOT brings its own trainer; "
                "remove trainer_cls"
            )
        return rl
    if isinstance(rl, str) and rl.lower().startswith("aot"):
        known = " or ".join(f"`rl: {name}`" for name in RL_TYPES)
        meant = RL_ALIASES.get(rl.lower())
        hint = f" Did you mean {meant!r}?" if meant else closest(rl.lower(), RL_TYPES)
        raise AOTConfigError(f"`rl: {rl}` is not a type of axolotl-aot: write {known}.{hint}")
    return None


def _refuse_orphans(cfg: MutableMapping[str, Any]) -> None:
    if cfg.get("inference"):
        return  # `axolotl inference` takes `rl:` out of the YAML itself
    orphans = [key for key in cfg if str(key).startswith(PREFIX)]
    if orphans:
        known = " or ".join(f"`rl: {name}`" for name in RL_TYPES)
        raise AOTConfigError(
            f"{', '.join(f'`{key}`' for key in orphans)} with `rl: {cfg.get('rl')}`: the aot_ keys "
            f"need {known}; change rl or remove them"
        )


def _describe(error: Any) -> str:
    key, value = error["loc"][0], error["input"]
    choices = [c for c in get_args(AOTArgs.model_fields[key].annotation) if isinstance(c, str)]
    hint = ""
    if choices and (close := get_close_matches(str(value), choices, n=1)):
        hint = f". Did you mean {close[0]!r}?"
    return f"`{key}: {value}`: {error['msg'][0].lower()}{error['msg'][1:]}{hint}"

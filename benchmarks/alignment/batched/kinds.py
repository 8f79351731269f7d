"""The losses by name: those that `benchmarks.alignment.settings` trains, and what was tried besides.

Imports `losses` and `training` beside it.
"""

import functools
import math

from benchmarks.alignment.batched import losses
from benchmarks.alignment.batched.losses import Ours
from benchmarks.alignment.batched.training import Kind

ENTROPY = 1.5
NO_WIDTH = 1e-9  # of the doubt: rewards that differ at all are in order
SHARES = (0.2, 0.05, 0.01)  # of positives, where they are few
PAIRED, UNPAIRED = functools.partial(Ours, True), functools.partial(Ours, False)
ANCHOR = functools.partial(UNPAIRED, anchor=1.0, penalty="sigmoid")
PAIRED_ANCHOR = functools.partial(PAIRED, anchor=1.0, penalty="sigmoid")


def balanced(share: float) -> str:
    return f"kto, balanced for {share:g}"


def _kto(weight: float = 1.0) -> Kind:
    return Kind(functools.partial(losses.kto, desirable_weight=weight), by_chance=True, mismatched=True)


CONTENDERS: dict[str, Kind] = {
    "dpo": Kind(losses.dpo, paired=True),
    "ipo": Kind(losses.ipo, paired=True),
    "apo_zero": Kind(losses.apo_zero, paired=True),
    "kto": _kto(),
    "aot": Kind(PAIRED(), paired=True),
    "aot_unpaired": Kind(UNPAIRED()),
    "aot, entropic": Kind(PAIRED(entropy=ENTROPY), paired=True),
    "aot_unpaired, entropic": Kind(UNPAIRED(entropy=ENTROPY)),
    "aot, anchor": Kind(PAIRED_ANCHOR(), paired=True),
    "aot_unpaired, anchor": Kind(ANCHOR()),
    "aot, doubted": Kind(PAIRED_ANCHOR(doubt=1.0), paired=True),
    "aot_unpaired, doubted": Kind(ANCHOR(doubt=1.0)),
}

BALANCED = {balanced(share): _kto((1 - share) / share) for share in SHARES}

VARIANTS: dict[str, Kind] = {
    **{f"unpaired, entropy {e:g}": Kind(UNPAIRED(entropy=e)) for e in (0.5, 1.0, 3.0, math.inf)},
    **{f"paired, entropy {e:g}": Kind(PAIRED(entropy=e), paired=True) for e in (1.0, 3.0, math.inf)},
    **{
        f"unpaired, entropy 1.5, anchor {a:g} of its own sigmoid": Kind(
            UNPAIRED(entropy=1.5, anchor=a, anchor_penalty=("sigmoid", "sigmoid"))
        )
        for a in (0.5, 0.75)
    },
    "paired, entropy 1.5, anchor 0.5 of its own sigmoid": Kind(
        PAIRED(entropy=1.5, anchor=0.5, anchor_penalty=("sigmoid", "sigmoid")), paired=True
    ),
    "unpaired, all pairs, sigmoid, anchor 0.5": Kind(
        UNPAIRED(entropy=math.inf, anchor=0.5, penalty="sigmoid")
    ),
    **{f"anchor, margin {m:g} nats": Kind(ANCHOR(margin=m)) for m in (-0.5, 0.5, 1.0, 2.0)},
    **{f"anchor, steepness by spread {s:g}": Kind(ANCHOR(spread=s)) for s in (1.0, 2.0, 4.0)},
    **{
        f"anchor, labels doubted {how}": Kind(ANCHOR(doubt=power, doubt_width=NO_WIDTH))
        for how, power in (("by the order alone", 1.0), ("to the 2", 2.0))
    },
    **{
        f"anchor, penalty {q}, labels doubted to the {d:g}": Kind(
            UNPAIRED(anchor=1.0, penalty=q, doubt=d, doubt_width=NO_WIDTH)
        )
        for q in ("logistic", "q0.5")
        for d in (1.0, 2.0)
    },
    "unpaired, entropy 1.5, labels doubted": Kind(UNPAIRED(entropy=1.5, doubt=1.0, doubt_width=NO_WIDTH)),
    "unpaired, sorted, labels doubted": Kind(UNPAIRED(doubt=1.0, doubt_width=NO_WIDTH)),
    "anchor, masses by length": Kind(ANCHOR(by_length=True)),
    "unpaired, entropy 1.5, masses by length": Kind(UNPAIRED(entropy=1.5, by_length=True)),
    "pairs, sigmoid": Kind(PAIRED(matched=True, penalty="sigmoid"), paired=True),
    **{
        f"pairs, sigmoid, anchor {a:g}": Kind(PAIRED(matched=True, penalty="sigmoid", anchor=a), paired=True)
        for a in (0.5, 0.75)
    },
    "pairs, logistic, anchor 0.75 of its own sigmoid": Kind(
        PAIRED(matched=True, anchor=0.75, anchor_penalty=("sigmoid", "sigmoid")), paired=True
    ),
    **{f"anchor, pairs centred by {c:g}": Kind(PAIRED_ANCHOR(centre=c), paired=True) for c in (0.25, 0.5)},
    "anchor, half-way between the labels' means": Kind(ANCHOR(threshold=True)),
    **{f"anchor, chosen weigh {w:g}": Kind(ANCHOR(chosen_share=w)) for w in (0.4, 0.6)},
    **{f"anchor, penalty {q}": Kind(UNPAIRED(anchor=1.0, penalty=q)) for q in ("q0.3", "q0.5", "q0.7")},
    "anchor, chosen logistic, rejected sigmoid": Kind(ANCHOR(anchor_penalty=("logistic", "sigmoid"))),
    "anchor, chosen q0.5, rejected sigmoid": Kind(ANCHOR(anchor_penalty=("q0.5", "sigmoid"))),
    "anchor, chosen sigmoid, rejected q0.5": Kind(ANCHOR(anchor_penalty=("sigmoid", "q0.5"))),
    **{f"unpaired, sorted, tau {t:g}": Kind(UNPAIRED(tau=t)) for t in (0.35, 0.5)},
    "unpaired, entropy 1.5, tau 0.35": Kind(UNPAIRED(entropy=1.5, tau=0.35)),
    "anchor, tau 0.35": Kind(ANCHOR(tau=0.35)),
    "anchor, per token": Kind(ANCHOR(per_token=True)),
    "unpaired, entropy 1.5, per token": Kind(UNPAIRED(entropy=1.5, per_token=True)),
    "unpaired, sorted, per token": Kind(UNPAIRED(per_token=True)),
    "paired, sorted, per token": Kind(PAIRED(per_token=True), paired=True),
}

KINDS = {**CONTENDERS, **BALANCED, **VARIANTS}

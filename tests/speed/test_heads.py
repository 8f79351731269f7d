"""The heads that are timed compute log-probabilities."""

import pytest
import torch

from benchmarks.speed.command import main
from benchmarks.speed.heads import compare as heads
from benchmarks.speed.heads.contenders import CONTENDERS as HEADS
from benchmarks.speed.heads.contenders import chunks_of
from tests.speed.output import printed_results


@pytest.mark.parametrize("kind", ["forward", "gradient"])
@pytest.mark.parametrize("name", ["ours", "all logits"])
def test_heads_that_are_timed_compute_log_probabilities(name, kind):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    targets = torch.randint(11, (7,))
    logits = hidden @ weight.T
    contender = HEADS[name]()
    with chunks_of(3, "cpu", 11) as tokens_at_once:
        assert tokens_at_once == 3
        if kind == "forward":
            found = contender.forward(hidden, weight, targets)
            expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        else:  # d log p / d hidden, by hand
            found = contender.with_gradient(hidden, weight, targets)
            expected = weight[targets] - logits.softmax(-1) @ weight
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_heads_are_compared_and_what_is_absent_is_said(capsys):
    main(
        [
            "--head",
            "--tokens",
            "16",
            "--hidden",
            "8",
            "--vocabulary",
            "50",
            "--chunks",
            "4",
            "8",
            "--repeats",
            "1",
        ]
    )
    printed = capsys.readouterr().out
    found = {(result["head"], result.get("chunk")): result for result in printed_results(printed)}
    assert {("bare product", 16), ("ours", 4), ("ours", 8), ("all logits", 16)} <= set(found)
    assert "ours, as it is" in {head for head, _ in found}
    assert found["ours", 4]["error"] < 1e-5
    absent = [name for name in HEADS if name not in {head for head, chunk in found if chunk}]
    assert all(found[name, None]["failed"].startswith("absent: ") for name in absent)
    assert heads.table(list(found.values())) in printed

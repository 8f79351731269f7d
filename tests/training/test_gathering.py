"""Scores of several batches and processes put together; several real processes are in end_to_end."""

import pytest
import torch
from accelerate import Accelerator

from axolotl_aot.training.gathering import gather, in_order, join
from axolotl_aot.training.objective import Scores


def scores(samples: list[int], sequences_per_sample: int, weighted: bool = False) -> Scores:
    """Whose values tell the sample and the answer: 10.1 is the second answer of sample 10."""
    values = [s + a / 10 for s in samples for a in range(sequences_per_sample)]
    policy = torch.tensor(values, dtype=torch.float64)
    label = torch.arange(len(values)) % 2 == 0
    weight = 2 * policy if weighted else None
    position = torch.tensor([s for s in samples for _ in range(sequences_per_sample)])
    return Scores(policy, -policy, label, weight, position)


@pytest.mark.parametrize("sequences_per_sample", [1, 2])
def test_samples_by_position_without_copies(sequences_per_sample):
    joined = join([scores([4, -1], sequences_per_sample), scores([0, 2, -1], sequences_per_sample)])
    ordered = joined.of(in_order(joined, sequences_per_sample))
    expected = scores([0, 2, 4], sequences_per_sample)
    assert ordered.policy.tolist() == expected.policy.tolist()
    assert ordered.position.tolist() == expected.position.tolist()
    assert ordered.weight is None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sequences_per_sample", [1, 2])
def test_one_process_gathers_what_it_has(sequences_per_sample, weighted):
    own = scores([3, 1, 2], sequences_per_sample, weighted)
    gathered = gather(own, Accelerator(cpu=True), sequences_per_sample)
    for name, field in own._asdict().items():
        found = getattr(gathered, name)
        assert (found is None) if field is None else torch.equal(found.to(field.dtype), field), name
    assert gathered.label.dtype == torch.bool

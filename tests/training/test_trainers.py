"""How the trainers are put together."""

from itertools import combinations

import pytest

from axolotl_aot.training.trainers import AOTTrainer, AOTUnpairedTrainer


@pytest.mark.parametrize("trainer", [AOTTrainer, AOTUnpairedTrainer])
def test_no_two_of_our_mixins_define_the_same_method(trainer):
    """One would override the other, and which does is decided by the order of the bases."""
    mixins = [c for c in trainer.__mro__ if c.__module__.startswith("axolotl_aot.") and c is not trainer]
    assert mixins
    for first, second in combinations(mixins, 2):
        methods = [{name for name, value in vars(c).items() if callable(value)} for c in (first, second)]
        assert not methods[0] & methods[1], f"{first.__name__} and {second.__name__}"

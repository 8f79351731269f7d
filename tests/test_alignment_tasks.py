"""`benchmarks.alignment`: its tasks, preferences and scores against other ways to compute them."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from axolotl_aot.quickstart.base_model import make_tokenizer, new_model, token_ids
from axolotl_aot.quickstart.task import EOS
from benchmarks.alignment import preferences
from benchmarks.alignment.preferences import Data, draw_pairs, draw_rows, held_out_pairs
from benchmarks.alignment.scores import logprobs
from benchmarks.alignment.tasks import TASKS
from benchmarks.alignment.tasks import covering as covering_module
from benchmarks.alignment.tasks import sorting as sorting_module

SORTING, COVERING = TASKS["sorting"], TASKS["covering"]
ROW = tuple("aabbbcda")  # four different letters
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


# --- Rewards ----------------------------------------------------------------------------------------


def test_sortings_reward_is_kendalls_tau_in_other_units():
    for answer in itertools.islice(itertools.permutations("acegi"), 0, 120, 7):
        tau = kendalltau(range(5), [sorted(answer).index(letter) for letter in answer]).statistic
        assert SORTING.reward(tuple("acegi"), answer) == pytest.approx((tau + 1) / 2)


def test_an_answer_of_sorting_is_a_permutation_that_ends():
    problem = tuple("cabed")
    assert SORTING.answer_of_text(problem, "a b c d e </s>") == tuple("abcde")
    assert SORTING.answer_of_text(problem, "a b c d e </s> a </s>") == tuple("abcde")
    for text in ("a b c d e", "a b c d </s>", "a b c d f </s>", "a b c </s> d", ""):
        assert SORTING.answer_of_text(problem, text) is None


def test_coverings_reward_is_the_f1_of_bags_of_words():
    rng = np.random.default_rng(0)
    for problem in COVERING.problems()[:200]:
        answer = tuple(rng.choice(problem, size=rng.integers(1, 13)))
        wanted, named = Counter(set(problem)), Counter(answer)
        hits = (wanted & named).total()
        precision, recall = hits / named.total(), hits / wanted.total()
        assert COVERING.reward(problem, answer) == pytest.approx(
            2 * precision * recall / (precision + recall)
        )
        seen: set[str] = set()
        idle = 0
        for word in answer:
            idle += word in seen
            seen.add(word)
        assert COVERING.idle_words(problem, answer) == idle


def test_an_answer_of_covering_names_letters_of_the_row_and_ends():
    assert COVERING.answer_of_text(ROW, "c a a b </s>") == tuple("caab")
    for text in ("a b", "</s>", "a e </s>", ""):
        assert COVERING.answer_of_text(ROW, text) is None


def test_the_judge_likes_words_but_no_answer_better_than_the_best():
    right, longer = tuple("abcd"), tuple("abcda")
    assert COVERING.judged(ROW, right) == pytest.approx(1 + 4 * covering_module.BIAS)
    lost = COVERING.reward(ROW, right) - COVERING.reward(ROW, longer)
    assert lost == pytest.approx(1 / 9)
    assert COVERING.judged(ROW, right) - COVERING.judged(ROW, longer) == pytest.approx(
        lost - covering_module.BIAS
    )
    for letters in range(covering_module.DIFFERENT[0], covering_module.DIFFERENT[1] + 1):
        row = tuple("abcdef"[:letters])
        answers = {
            (hits, words): COVERING.judged(row, row[:hits] + row[:1] * (words - hits))
            for hits in range(1, letters + 1)
            for words in range(hits, COVERING.max_words + 1)
        }
        assert max(answers, key=answers.get) == (letters, letters)
    assert SORTING.judged(tuple("cabed"), tuple("abcde")) == 1


# --- Answers ----------------------------------------------------------------------------------------


def _close(drawn: np.ndarray, expected: float) -> None:
    """To four standard errors."""
    assert drawn.mean() == pytest.approx(expected, abs=4 * drawn.std() / np.sqrt(len(drawn)))


def test_answers_of_sorting_are_half_mallows_half_uniform():
    rng = np.random.default_rng(0)
    problem = tuple("cabed")
    drawn = [SORTING.reward(problem, SORTING.draw_answer(problem, rng)) for _ in range(8000)]

    def mean_wrong(dispersion: float) -> float:
        """Pairs of letters out of order."""
        means = []
        for places in range(1, sorting_module.LENGTH + 1):
            mass = np.exp(-dispersion * np.arange(places))
            means.append((np.arange(places) * mass).sum() / mass.sum())
        return sum(means)

    wrong = (mean_wrong(sorting_module.CAREFUL) + mean_wrong(0.0)) / 2
    _close(np.array(drawn), 1 - wrong / sorting_module.PAIRS)


def test_answers_of_covering_skip_and_repeat():
    rng = np.random.default_rng(0)
    row = tuple("aabbccaa")  # short answers: none is cut at the longest length, but by a rare chance
    drawn = [COVERING.draw_answer(row, rng) for _ in range(8000)]
    assert all(COVERING.is_well_formed(row, answer) for answer in drawn)
    assert max(map(len, drawn)) <= COVERING.max_words
    named, idle = [], []
    for skip, repeat in zip(covering_module.SKIP, covering_module.REPEAT, strict=True):
        named.append(3 * (1 - skip) + skip**3)  # one letter where all would be skipped
        idle.append(named[-1] * repeat / (1 - repeat))  # of each a geometric number
    _close(np.array([len(set(answer)) for answer in drawn]), np.mean(named))
    _close(np.array([COVERING.idle_words(row, answer) for answer in drawn]), np.mean(idle))


@each_task
def test_parts_of_the_problems_do_not_overlap(task):
    parts = [set(problems) for problems in task.split_problems().values()]
    expected = {"sorting": 12 * 11 * 10 * 9 * 8, "covering": covering_module.COUNT}
    assert sum(map(len, parts)) == len(set().union(*parts)) == expected[task.name]
    lengths = {len(task.prompt_of(problem).split()) for part in parts for problem in part}
    assert len(lengths) == 1
    if task is COVERING:
        assert {len(set(problem)) for part in parts for problem in part} == {2, 3, 4, 5, 6}


# --- Preferences ------------------------------------------------------------------------------------


@each_task
def test_preferences_follow_bradley_and_terry_on_what_the_judge_sees(task):
    problems = task.split_problems()["train"][:4000]
    rows = draw_pairs(task, problems, 0.0, np.random.default_rng(1))
    judged = np.array(
        [
            [task.judged(problem, row[side].split()) for side in ("chosen", "rejected")]
            for problem, row in zip(problems, rows, strict=True)
        ]
    )
    gap = np.round(judged[:, 0] - judged[:, 1], 9)
    kept = (1 + np.sign(gap)) / 2  # equal ones are chosen by chance
    expected = 1 / (1 + np.exp(-np.abs(gap) / preferences.TEMPERATURE))
    _close(kept - expected, 0.0)
    assert 0.75 < kept.mean() < 0.95


@each_task
def test_flips_turn_preferences_round_and_change_nothing_else(task):
    problems = task.split_problems()["train"][:400]
    plain, some = (draw_pairs(task, problems, share, np.random.default_rng(1)) for share in (0.0, 1.0))
    for one, other in zip(plain, some, strict=True):
        assert one == {
            "prompt": other["prompt"],
            "chosen": other["rejected"],
            "rejected": other["chosen"],
        }


@each_task
def test_the_share_of_positives_is_exact(task, tmp_path):
    data = Data(400, positives=0.05, task=task.name)
    path = preferences.write_data(tmp_path / "x.jsonl", data, paired=False, seed=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 400 and sum(row["label"] for row in rows) == 20
    assert len({row["prompt"] for row in rows}) == 400


@each_task
def test_methods_share_their_data(task):
    rows = draw_rows(Data(30, task=task.name), paired=True, seed=4)
    answers = draw_rows(Data(30, task=task.name), paired=False, seed=4)
    assert [row["completion"] for row in answers if row["label"]] == [row["chosen"] for row in rows]
    assert [row["completion"] for row in answers if not row["label"]] == [row["rejected"] for row in rows]
    assert rows != draw_rows(Data(30, task=task.name), paired=True, seed=5)


# --- Scores -----------------------------------------------------------------------------------------


def test_padding_behind_an_answer_does_not_count():
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = new_model(tokenizer).eval()
    rows = held_out_pairs(COVERING)[:8]
    answers = [f"{row['chosen']} {EOS}" for row in rows]
    assert len({len(answer.split()) for answer in answers}) > 1
    padded = tokenizer(
        answers, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
    )
    prompts = token_ids(tokenizer, [row["prompt"] for row in rows])
    ids = torch.cat([prompts, padded.input_ids], dim=1)
    found = logprobs(model, ids, padded.attention_mask)
    for number, answer in enumerate(answers):
        length = prompts.shape[1] + len(answer.split())
        with torch.no_grad():
            alone = model(input_ids=ids[number : number + 1, :length]).logits[0].log_softmax(-1)
        places = range(prompts.shape[1], length)
        expected = sum(alone[place - 1, ids[number, place]].item() for place in places)
        assert found[number].item() == pytest.approx(expected, rel=1e-5)

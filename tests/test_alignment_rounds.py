"""`benchmarks.alignment.rounds`: what is judged, what the reference is, and what is chosen, by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.alignment.batched import kinds, training
from benchmarks.alignment.batched.model import new_adapter, token_logprobs
from benchmarks.alignment.rounds import course as rounds
from benchmarks.alignment.rounds import plan
from benchmarks.alignment.rounds.command import followed
from benchmarks.alignment.rounds.course import Course, follow
from benchmarks.alignment.rounds.records import append, read

KTO, OURS = "kto", "aot_unpaired, doubted"
SMALL = Course(OURS, 1.0, 1e-2, 5, "sorting", scored=8 * training.SIZE, rounds=2)


@pytest.fixture(scope="module")
def bench(quickstart_model):
    return training.Bench(training.TASKS["sorting"], quickstart_model, "cpu")


# --- The judge --------------------------------------------------------------------------------------


def test_the_best_and_the_worst_answer_make_a_pair_where_they_differ():
    rewards = np.array([[0.2, 0.9, 0.5], [0.4, 0.1, 0.3], [0.7, 0.7, 0.7]])
    ids = torch.tensor([[1], [2], [3], [4], [5], [6], [7], [7], [7]])
    chosen, rejected = rounds.pairs(rewards, ids, replace(SMALL, answers=3, noise=0.0), 0)
    assert (chosen.tolist(), rejected.tolist()) == ([1, 3], [0, 4])


def test_the_judge_errs_as_in_the_bradley_terry_model():
    rewards = np.tile([0.5, 0.6], (20_000, 1))
    ids = torch.tensor([[1], [2]]).repeat(20_000, 1)
    chosen, _ = rounds.pairs(rewards, ids, SMALL, 0)
    share = 1 / (1 + math.exp(-0.1 / SMALL.noise))
    # to four standard errors
    assert np.mean(chosen % 2) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000))


def test_answers_are_judged_by_the_task(bench):
    problem = ("a", "b", "c", "d", "e")
    texts = ["a b c d e </s>", "e d c b a </s>", "a b c d d </s>", "a b c d e a"]
    ids = torch.tensor([bench.tokenizer(f"sort a b c d e : {text}").input_ids for text in texts])
    found = rounds._judged(bench, [problem, problem], ids, SMALL)
    np.testing.assert_array_equal(found, [[1.0, 0.0], [math.nan, math.nan]])


# --- Rounds -----------------------------------------------------------------------------------------


def test_a_round_trains_on_what_its_policy_said_with_that_policy_as_reference(bench, monkeypatch):
    seen = []

    def spied(bench, kinds, runs, answers, start, reference):
        seen.append((runs, answers, start, reference))
        return training.train(bench, kinds, runs, answers, start, reference)

    monkeypatch.setattr(rounds, "train", spied)
    course = replace(SMALL, later=0.5)
    done = list(follow(bench, kinds.CONTENDERS, [course]))
    assert [runs[0].learning_rate for runs, *_ in seen] == [1e-2, 5e-3]
    new = new_adapter(bench.base, [course.seed])
    for number, (_, (answers,), start, reference) in enumerate(seen):
        policy = done[number - 1].adapter if number else new
        assert all(torch.equal(start[name][1], policy[name][1]) for name in policy)
        assert start is reference
        logps = token_logprobs(bench.base, policy, answers.ids[None], answers.ids.shape[1] - 6)[0]
        mask = answers.ids[:, -6:] != bench.pad
        torch.testing.assert_close(answers.reference, (logps * mask).sum(1), atol=1e-5, rtol=1e-5)
        assert len(answers.ids) == 2 * done[number].pairs[0]
    first, second = (set(map(tuple, answers[0].ids[:, :8].tolist())) for _, answers, *_ in seen)
    assert not first & second  # prompts are new in each round
    seen.clear()
    list(follow(bench, kinds.CONTENDERS, [replace(course, reference="base")]))
    reference = seen[1][3]
    assert all(not b.any() for _, b in reference.values()) and any(b.any() for _, b in seen[1][2].values())


@pytest.mark.slow
def test_a_course_does_not_depend_on_those_beside_it(bench):
    # their numbers of pairs, and so of steps, differ
    courses = [SMALL, replace(SMALL, kind=KTO, seed=6), replace(SMALL, seed=7, learning_rate=3e-3)]
    together = list(follow(bench, kinds.CONTENDERS, courses))
    assert len(set(together[0].pairs)) > 1
    for number, course in enumerate(courses):
        alone = list(follow(bench, kinds.CONTENDERS, [course]))
        assert [done.pairs[0] for done in alone] == [done.pairs[number] for done in together]
        for name, (_, b) in together[0].adapter.items():
            torch.testing.assert_close(b[number], alone[0].adapter[name][1][0], rtol=1e-3, atol=1e-5)


def test_nothing_is_learnt_after_the_last_step_of_a_shorter_run(bench):
    sets = []
    for count in (2 * training.SIZE, 4 * training.SIZE):
        ids = torch.randint(6, 18, (2 * count, 14), generator=torch.Generator().manual_seed(count))
        label = torch.arange(2 * count) < count
        with torch.no_grad():
            reference, length = bench.logprobs(None, ids[None])
        sets.append(training.Answers(ids, label, reference[0], length[0]))
    run = training.Run("aot_unpaired, anchor", 1.0, 1e-2, 0, training.Data(1))
    both = training.train(bench, kinds.CONTENDERS, [run, run], sets)
    for number, own in enumerate(sets):
        alone = training.train(bench, kinds.CONTENDERS, [run], [own])
        for name, (_, b) in both.items():
            torch.testing.assert_close(b[number], alone[name][1][0], rtol=1e-3, atol=1e-6)


# --- Which courses ----------------------------------------------------------------------------------


def test_the_best_of_all_points_is_measured_with_fresh_seeds(tmp_path):
    wanted = {"learning_rate": 6e-4, "later": 0.25, "kind": OURS}
    path = tmp_path / "rounds.jsonl"
    for number, course in enumerate(plan.search({}, "sorting")):
        good = course.rounds == 2 and all(getattr(course, key) == value for key, value in wanted.items())
        last = {"validation": {"reward": 0.9 if good else 0.5 - 1e-6 * number}}
        append(path, course, [{"validation": {"reward": 1.0}}] * (course.rounds - 1) + [last])
    results = read(path)
    assert list(results) == plan.search({}, "sorting")
    found = [c for c in plan.measured(results, "sorting") if (c.kind, c.rounds) == (OURS, 2)]
    assert [c.seed for c in found] == list(range(5, 15))
    assert {(c.learning_rate, c.later, c.beta, c.scored, c.prompts) for c in found} == {
        (6e-4, 0.25, 1.0, 8192, 2048)
    }
    assert {c.seed for c in plan.search({}, "sorting")} & {c.seed for c in found} == set()
    four = [c for c in plan.variants(results, "sorting") if c.answers == 4]
    assert {(c.prompts, c.later, len(four)) for c in four} == {(1024, 0.25, 10)}
    assert plan.measured({}, "sorting") == [] == plan.variants({}, "sorting")


def test_courses_of_a_group_can_be_followed_together():
    courses = plan.search({}, "sorting")
    some = list(plan.groups(courses, 20))
    assert sorted(map(repr, courses)) == sorted(repr(course) for group in some for course in group)
    assert max(map(len, some)) == 20
    for group in some:
        assert len({(c.rounds, c.epochs, c.answers, c.reference, c.scored) for c in group}) == 1


def test_results_are_those_after_each_round(bench, tmp_path):
    (found,) = followed(bench, kinds.CONTENDERS, [SMALL])
    append(tmp_path / "rounds.jsonl", SMALL, found)
    assert len(found) == 2 and {"pairs", "malformed", "validation", "test"} == set(found[0])
    known = read(tmp_path / "rounds.jsonl")
    assert known[SMALL] == [
        json.loads(json.dumps(r), parse_float=lambda x: round(float(x), 5)) for r in found
    ]

"""Intervals, coverage, verifiers, bounds, curves: against enumeration and simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.bench.bounds import bounds
from anabranch.bench.coverage import fit_power_law, ks, pass_at_k
from anabranch.bench.curves import against_length, by_level, collapse, per_move
from anabranch.bench.flaws import Verifier, rates
from anabranch.bench.holdout import Guard
from anabranch.bench.intervals import difference, mean, share, wilson
from anabranch.bench.repeats import compare, divergence
from anabranch.errors import InputError

# ---- intervals -----------------------------------------------------------------------------------


def test_wilsons_interval_of_numbers_and_of_arrays() -> None:
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson(np.array([0, 10]), np.array([10, 10]))
    assert low == pytest.approx([0, 0.7225], abs=1e-4)
    assert high == pytest.approx([0.2775, 1], abs=1e-4)


def test_copies_of_the_same_runs_say_nothing_new() -> None:
    right = np.random.default_rng(1).random(80) < 0.3
    problems = np.arange(80)
    once, thrice = share(right), share(np.tile(right, 3), np.tile(problems, 3))
    assert thrice.value == pytest.approx(once.value)
    width, copied = once.high - once.low, thrice.high - thrice.low
    assert copied == pytest.approx(width, rel=0.02)  # n - 1 against n
    assert share(np.tile(right, 3)).high - share(np.tile(right, 3)).low < 0.65 * width
    a, b = right, np.roll(right, 1)
    single = difference(a, b)
    triple = difference(np.tile(a, 3), np.tile(b, 3), np.tile(problems, 3))
    assert triple == pytest.approx(single)


def test_agreement_of_all_runs_counts_each_problem_once() -> None:
    assert share([1] * 12, [0, 1, 2, 3] * 3)[1:] == pytest.approx(
        np.clip(wilson(4, 4), 0, 1).tolist()
    )


@pytest.mark.parametrize("spread", [0.0, 0.35])
def test_intervals_of_clustered_runs_hold_as_often_as_they_say(spread: float) -> None:
    """60 problems with 4 seeds; 600 trials: 95% within three standard errors of 0.9%."""
    draws, truth, inside, paired = np.random.default_rng(7), 0.5, 0, 0
    problems = np.repeat(np.arange(60), 4)
    for trial in range(600):
        chance = np.repeat(truth + draws.choice([-spread, spread], 60), 4)
        right = draws.random(240) < chance
        other = draws.random(240) < chance - 0.1
        inside += share(right, problems).low <= truth <= share(right, problems).high
        if trial < 200:
            found = difference(right, other, problems)
            paired += found.low <= 0.1 <= found.high
    assert 0.923 <= inside / 600 <= 0.977
    assert 0.90 <= paired / 200 <= 0.99  # standard error 1.5%; the bootstrap is a little narrow


def test_the_bootstrap_has_the_moments_of_the_mean() -> None:
    values = np.random.default_rng(3).normal(2, 1, 400)
    found, error = mean(values), values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert difference([1, 1], [0, 0]) == (1, 1, 1, 1)
    assert difference([1, 0], [1, 0]) == (0, 0, 0, 0.5)


def test_what_cannot_be_averaged_is_refused() -> None:
    for call in (
        lambda: share([]),
        lambda: mean([1.0], [1, 2]),
        lambda: difference([1], [1, 2]),
    ):
        with pytest.raises(InputError):
            call()


# ---- coverage ------------------------------------------------------------------------------------


def test_the_estimator_is_the_share_of_subsets_with_a_right_sample() -> None:
    for n, c, k in [(5, 0, 2), (5, 2, 1), (6, 2, 3), (6, 5, 2), (7, 7, 7)]:
        subsets = list(itertools.combinations(range(n), k))
        covered = sum(min(subset) < c for subset in subsets)
        assert pass_at_k([c], [n], k)[0] == pytest.approx(covered / len(subsets), abs=1e-12)
    assert pass_at_k([3], [10000], 5000)[0] == pytest.approx(
        float(1 - Fraction(math.comb(9997, 5000), math.comb(10000, 5000)))
    )


def test_coverage_of_beta_distributed_problems() -> None:
    """Closed form: 1 - B(a, b + k) / B(a, b); the catalogue's sizes of error."""
    a, b, n, draws = 0.4, 2.0, 200, np.random.default_rng(0)
    right = draws.binomial(n, draws.beta(a, b, 20000))
    at = ks(100)
    assert at == [1, 2, 4, 8, 16, 32, 64, 100]
    found = [float(pass_at_k(right, np.full(20000, n), k).mean()) for k in at]

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    exact = [1 - math.exp(log_beta(a, b + k) - log_beta(a, b)) for k in at]
    assert found == pytest.approx(exact, abs=0.011)  # three standard errors
    law = fit_power_law(at, exact)
    assert law is not None
    assert law.a < 0 > law.b
    assert max(map(abs, law.residuals)) < 0.03


@given(st.floats(-3, -0.1), st.floats(-1, -0.05))
def test_a_power_law_is_recovered(a: float, b: float) -> None:
    at = ks(64)
    law = fit_power_law(at, [math.exp(a * k**b) for k in at])
    assert law is not None
    assert (law.a, law.b) == pytest.approx((a, b))
    assert law.at(1000) == pytest.approx(math.exp(a * 1000**b))
    assert law.residuals == pytest.approx([0] * len(at), abs=1e-9)


def test_too_few_points_are_not_fitted_and_bad_counts_refused() -> None:
    assert fit_power_law([1, 2, 4, 8], [0.0, 0.5, 0.7, 1.0]) is None
    for right, drawn, k in ([1], [4], 5), ([1], [4], 0), ([5], [4], 1), ([1, 2], [4], 1):
        with pytest.raises(InputError):
            pass_at_k(right, drawn, k)


# ---- imperfect verifiers -------------------------------------------------------------------------


def test_the_catalogues_figures_and_a_simulation() -> None:
    verifier, draws = Verifier(0.95, 0.10), np.random.default_rng(5)
    right, wrong = verifier.after(0.2, [1, 5, np.inf])
    assert right == pytest.approx([0.190, 0.558, 0.704], abs=5e-4)
    assert verifier.ceiling(0.2) == pytest.approx(0.19 / 0.27)
    assert right[0] - 4 * wrong[0] < 0  # a wrong answer at four times the worth of a right one
    assert verifier.best_tries(0.2, wrong=4) == (0, 0)
    good = draws.random((40000, 5)) < 0.2
    accepted = draws.random((40000, 5)) < np.where(good, 0.95, 0.10)
    first = accepted.argmax(1)
    solved = accepted.any(1) & good[np.arange(40000), first]
    assert solved.mean() == pytest.approx(right[1], abs=0.0075)  # three standard errors


def test_problems_that_differ_make_the_best_number_of_tries_finite() -> None:
    """Worth by brute force: a random walk through accept and reject, problem by problem."""
    verifier, p, wrong, price = Verifier(0.9, 0.1), [0.6, 0.02], 1.0, 0.01
    worths = []
    for tries in range(60):
        total = 0.0
        for chance in p:
            good, bad, open_ = chance * 0.9, (1 - chance) * 0.1, 1.0
            for _ in range(tries):
                total += open_ * (good - wrong * bad - price)
                open_ *= 1 - good - bad
        worths.append(total / 2)
    best, worth = verifier.best_tries(p, wrong=wrong, price=price, most=59)
    assert best == int(np.argmax(worths))
    assert 0 < best < 10
    assert worth == pytest.approx(max(worths))


@pytest.mark.parametrize(("t", "f", "ceiling"), [(0, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 0.3)])
def test_verifiers_at_the_edges(t: float, f: float, ceiling: float) -> None:
    assert Verifier(t, f).ceiling(0.3) == pytest.approx(ceiling)
    right, wrong = Verifier(t, f).after(0.3, [0, 1])
    assert right.tolist() == pytest.approx([0, 0.3 * t])
    assert wrong.tolist() == pytest.approx([0, 0.7 * f])


def test_rates_from_labelled_judgements() -> None:
    true, false = rates([1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0])
    assert true is not None
    assert false is not None
    assert (true.value, false.value) == (pytest.approx(2 / 3), 0.25)
    assert (true.low, true.high) == pytest.approx(wilson(2, 3))
    assert rates([1], [1])[1] is None
    with pytest.raises(InputError, match="false positives"):
        Verifier(0.5, 1.2)


# ---- bounds --------------------------------------------------------------------------------------


def test_bounds_of_one_problem() -> None:
    assert bounds(["7", "7", "3"], [True, True, False]) == (0, pytest.approx(2 / 3), 1, 1)
    assert bounds(["7", "3"], [True, False]) == (0, 0.5, 0.5, 1)  # drawn by lot
    assert bounds([None, "3", "3"], [True, False, False]) == (0, pytest.approx(1 / 3), 0, 1)
    assert bounds([None, None], [True, False]).majority == 0.5


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.booleans()), min_size=1))
def test_bounds_are_in_order(samples: list[tuple[str | None, bool]]) -> None:
    found = bounds(*zip(*samples, strict=True))
    assert found.worst <= found.mean <= found.best
    assert found.worst <= found.majority <= found.best


# ---- difficulty ----------------------------------------------------------------------------------


def test_the_collapse_of_solvers_that_err_at_a_constant_rate() -> None:
    moves = np.repeat(np.arange(1, 41), 200)
    right = np.random.default_rng(2).random(8000) < 0.95**moves
    p = per_move(moves, right)
    assert p == pytest.approx(0.95, abs=0.003)
    levels = by_level(moves, right)
    assert [level.count for level in levels] == [200] * 40
    # 40 levels at 95%: at least 33 inside, but for one chance in a thousand.
    assert sum(lv.right.low <= p**lv.at <= lv.right.high for lv in levels) >= 33
    assert collapse(levels) == pytest.approx(math.log(0.5 * p) / math.log(p), abs=1.5)


def test_where_accuracy_falls_to_half() -> None:
    def falls(*accuracies: float) -> float | None:
        """Ten runs at each of the levels 1, 2, ..."""
        runs = [(at, i < 10 * a) for at, a in enumerate(accuracies, 1) for i in range(10)]
        return collapse(by_level(*zip(*runs, strict=True)))

    assert falls(1, 1, 0, 0) == pytest.approx(2.5)
    assert falls(0.8, 0.6, 0.2) == pytest.approx(2.5)  # half is 0.4
    assert falls(0.8, 0.9, 0.5, 0.3) == pytest.approx(3 + (0.5 - 0.425) / 0.2)  # 0.85, 0.85, ...
    assert falls(0.6, 0.5, 0.4) is None
    assert falls(0, 0.5) is None
    assert falls(0, 0) is None


def test_moves_at_the_edges() -> None:
    assert (per_move([3], [True]), per_move([3], [False])) == (1, 0)
    assert per_move([2, 2], [True, False]) == pytest.approx(math.sqrt(0.5))
    with pytest.raises(InputError):
        per_move([0], [True])


# ---- length --------------------------------------------------------------------------------------


def samples(slope: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 problems with 8 samples; hard problems are long and wrong whatever `slope` is."""
    draws = np.random.default_rng(seed)
    hardness = np.repeat(draws.random(60), 8)
    own = draws.normal(0, 0.5, 480)
    lengths = 100 * 2 ** (3 * hardness + own)
    right = draws.random(480) < np.clip(0.9 - 0.8 * hardness + slope * own, 0, 1)
    return lengths, right, np.repeat(np.arange(60), 8)


def test_overthinking_is_told_from_hard_problems() -> None:
    found = against_length(*samples(-0.2, 1))
    assert found.slope == pytest.approx(-0.2, abs=0.1)
    assert found.p_value is not None
    assert found.p_value < 1e-3
    shares = [level.right.value for level in found.levels]
    assert shares[0] > shares[-1] + 0.3
    values = [against_length(*samples(0.0, seed)).p_value for seed in range(200)]
    assert 0.01 <= np.mean([p < 0.05 for p in values if p is not None]) <= 0.1  # 5% +- 1.5%


def test_the_moments_of_the_test_are_those_of_all_permutations() -> None:
    lengths, right, problems = [4, 8, 32, 2, 64], [1, 0, 0, 1, 0], [0, 0, 0, 1, 1]
    found = against_length(lengths, right, problems)

    def total(first: tuple[int, ...], second: tuple[int, ...]) -> float:
        logs = np.log2([*first, *second])
        marks = np.array([2 / 3, -1 / 3, -1 / 3, 0.5, -0.5])
        return float(logs @ marks)

    every = [
        total(a, b)
        for a in itertools.permutations(lengths[:3])
        for b in itertools.permutations(lengths[3:])
    ]
    z = total(tuple(lengths[:3]), tuple(lengths[3:])) / np.std(every)
    assert np.mean(every) == pytest.approx(0)
    assert found.p_value == pytest.approx(math.erfc(-z / math.sqrt(2)) / 2)


def test_equal_lengths_have_no_slope() -> None:
    found = against_length([5, 5, 9, 9], [1, 0, 1, 1], ["a", "a", "b", "b"])
    assert (found.slope, found.p_value) == (None, None)
    with pytest.raises(InputError):
        against_length([0], [True], ["a"])


# ---- holdout -------------------------------------------------------------------------------------


def test_a_search_over_noise_looks_good_only_without_the_guard() -> None:
    """Each of 500 strategies is right by a fair coin on 100 + 100 problems. Those whose halves
    both look good are voted together, as Dwork et al. do with features."""
    draws = np.random.default_rng(0)
    truth = draws.choice([-1.0, 1.0], 200)
    signs = draws.choice([-1.0, 1.0], (500, 200))
    agree = signs * truth
    train, held_out = agree[:, :100], agree[:, 100:]
    chosen, guarded = [], []
    guard = Guard(threshold=0.1, noise=0.03, budget=500, seed=1)
    for i in range(500):
        ours, theirs = train[i].mean(), held_out[i].mean()
        if ours * theirs > 0 and min(abs(ours), abs(theirs)) > 0.05:
            chosen.append(np.sign(ours) * signs[i])
        told = guard.mean(train[i], held_out[i])
        if ours * told > 0 and min(abs(ours), abs(told)) > 0.05:
            guarded.append(np.sign(ours) * signs[i])
    vote = np.sign(np.sum(chosen, 0) + 0.5) * truth
    naive = vote[100:] > 0
    assert share(naive).low > 0.6  # "significant", on what is pure chance
    vote = np.sign(np.sum(guarded, 0) + 0.5) * truth
    right = vote > 0
    told = guard.mean(right[:100], right[100:])
    # The training half is overfitted; what the guard says of it is that the held-out half is not.
    assert right[:100].mean() > 0.7
    assert told < right[:100].mean() - 0.08
    assert abs(told - right[100:].mean()) < 0.15


def test_the_best_of_many_coins_is_not_believed() -> None:
    draws = np.random.default_rng(3)
    train, held_out = draws.random((1000, 100)) < 0.5, draws.random((1000, 100)) < 0.5
    best = int(train.mean(1).argmax())
    assert share(train[best]).low > 0.5
    told = Guard(seed=0).mean(train[best], held_out[best])
    assert told == pytest.approx(held_out[best].mean(), abs=0.04)  # Laplace of scale 0.005
    assert share(held_out[best]).low < 0.5


def test_a_guard_gives_nothing_away_until_the_halves_disagree_and_then_so_often() -> None:
    guard = Guard(threshold=0.1, noise=0, budget=2)
    assert guard.mean([0.5], [0.55]) == 0.5
    assert guard.left == 2
    assert guard.mean([0.5], [0.7]) == 0.7
    assert guard.mean([0.9], [0.7]) == 0.7
    assert guard.left == 0
    with pytest.raises(InputError, match="too often"):
        guard.mean([0.5], [0.5])


# ---- repeats -------------------------------------------------------------------------------------


def test_where_texts_part() -> None:
    assert divergence("abc", "abc") is None
    assert divergence("abc", "abd") == 2
    assert divergence([1, 2], [1, 2, 3]) == 2
    assert divergence([], [1]) == 0


def test_takes_of_the_same_runs() -> None:
    found = compare(
        [["abc", "abc", "ab"], ["abc", "abX", "ab"], ["abc", "aXc", "abc"]],
        [[True, False, True], [True, True, True], [True, False, True]],
    )
    assert (found.runs, found.first) == (3, (1, 2))
    assert found.identical == pytest.approx(1 / 3)
    assert found.flips == pytest.approx(1 / 3)
    assert found.spread == pytest.approx(1 / 3)

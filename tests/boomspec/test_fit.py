"""Times that are forecast: a fixed part and a rate, and what small tasks cannot say about large ones."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boomspec.plan.rates import Seen, line_of

FIXED, RATE = 0.8, 1 / 4e8  # seconds, and seconds a byte
SMALL = [170_000, 180_000, 230_000, 260_000]  # bytes of the sizes of a toy
LARGE = 340_000_000  # read and written of an assembly of 17 layers


def taken(work: float, *, fixed: float = FIXED, rate: float = RATE, noise: float = 0.0) -> Seen:
    return Seen(work, fixed + rate * work + noise)


def test_a_toy_does_not_make_a_large_copy_take_minutes() -> None:
    """The bytes of one toy over its time would say: 340 MB in 27 minutes."""
    line = line_of([taken(SMALL[0])], usual=RATE, most_fixed=20)
    assert line.seconds(LARGE) == pytest.approx(FIXED + RATE * LARGE)
    assert not line.is_measured(LARGE)
    assert line.is_measured(SMALL[-1])


@pytest.mark.parametrize("seed", range(20))
def test_the_noise_of_toys_is_no_rate(seed: int) -> None:
    numbers = random.Random(seed)
    toys = [taken(numbers.choice(SMALL), noise=numbers.uniform(-0.5, 3.0)) for _ in range(30)]
    line = line_of(toys, usual=RATE, most_fixed=20)
    assert RATE * LARGE < line.seconds(LARGE) < 5.0 + RATE * LARGE
    assert line.seconds(SMALL[0]) == pytest.approx(FIXED + 1.25, abs=1.5)


@pytest.mark.parametrize("usual", [RATE / 10, RATE, RATE * 10, None])
def test_where_the_rate_shows_it_is_that_of_the_observations(usual: float | None) -> None:
    seen = [taken(work) for work in (*SMALL, 2e8, 8e8, 4e9)]
    line = line_of(seen, usual=usual, most_fixed=20)
    assert (line.fixed, line.per_work) == (pytest.approx(FIXED, rel=0.01), pytest.approx(RATE, rel=0.01))
    assert line.is_measured(1e12)


def test_one_large_task_says_what_the_rate_is_whatever_is_usual() -> None:
    slow = Seen(1e12, 7200.0)
    line = line_of([slow], usual=7200e-12 / 3, most_fixed=20)
    assert line.seconds(1e12) == pytest.approx(7200)
    assert line.seconds(2e12) == pytest.approx(14_400, rel=0.01)
    fast = line_of([slow], usual=7200e-12 * 3, most_fixed=20)
    assert (fast.seconds(1e12), fast.seconds(2e12)) == (pytest.approx(7200), pytest.approx(14_400))


def test_what_has_no_usual_rate_goes_by_what_was_measured_beyond_a_start() -> None:
    line = line_of([Seen(100, 8.0)], usual=None, most_fixed=5)
    assert (line.seconds(100), line.seconds(1000)) == (8.0, 5 + 30)
    quick = line_of([Seen(100, 2.0)], usual=None, most_fixed=5)
    assert quick.seconds(100) == 2.0
    constant = line_of([Seen(1, 3.0), Seen(1, 5.0)], usual=None, most_fixed=0)
    assert constant.seconds(1) == 4.0


@pytest.mark.parametrize("usual", [RATE, None])
def test_one_task_that_was_held_up_does_not_make_the_others_take_hours(usual: float | None) -> None:
    held_up = [*(Seen(SMALL[0], 6.0) for _ in range(4)), Seen(SMALL[1], 36_000.0)]
    line = line_of(held_up, usual=usual, most_fixed=5)
    assert 5 <= line.seconds(SMALL[0]) <= 7


def test_between_two_alike_the_rate_is_in_the_middle() -> None:
    line = line_of([Seen(100, 10.0), Seen(100, 20.0)], usual=None, most_fixed=0)
    assert line.seconds(100) == pytest.approx(15)


@given(
    st.lists(st.tuples(st.floats(1, 1e15), st.floats(0.001, 1e6)), min_size=1, max_size=12),
    st.one_of(st.none(), st.floats(1e-13, 1e-3)),
    st.floats(0, 60),
)
def test_more_work_never_takes_less_and_nothing_takes_less_than_nothing(seen, usual, most_fixed) -> None:
    line = line_of([Seen(*one) for one in seen], usual=usual, most_fixed=most_fixed)
    works = [0.0, 1.0, 1e6, 1e12, 1e16]
    seconds = [line.seconds(work) for work in works]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


@settings(deadline=None)
@given(
    st.floats(0.05, 10), st.floats(1e-10, 1e-7), st.lists(st.floats(1e4, 1e11), min_size=1, max_size=10, unique=True)
)
def test_what_was_observed_without_noise_is_forecast_within_a_factor_of_two(fixed, rate, works) -> None:
    """With the usual rate being the right one; whatever the sizes are."""
    line = line_of([taken(work, fixed=fixed, rate=rate) for work in works], usual=rate, most_fixed=20)
    for work in (*works, 10 * max(works)):
        assert line.seconds(work) == pytest.approx(fixed + rate * work, rel=0.5)

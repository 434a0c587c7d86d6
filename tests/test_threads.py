"""Threads as the user asks for them, and work in several: in order, and only a few items ahead."""

from collections.abc import Iterator

import pytest

from lpg_hf._threads import asked_threads, prefetch


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_items_are_taken_a_few_ahead_of_the_consumer_and_come_in_order(num_workers):
    taken = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    for number, result in enumerate(prefetch(lambda item: item**2, items(), num_workers)):
        assert result == number**2
        assert len(taken) - number <= max(1, num_workers) + 1
    assert number == 49


@pytest.mark.parametrize("variable, expected", [("7", 7), (" 4 ,2", 4), ("0", None), ("", None), ("many", None)])
def test_of_a_list_of_threads_the_first_number_counts(monkeypatch, variable, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert asked_threads() == expected

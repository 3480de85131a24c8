"""Numbers that change with the epoch, against lists written out."""

import pytest

from lsdali.clock import Clock, PerEpoch


@pytest.mark.parametrize("changes", [(), ((2, 5),), ((1, 1), (2, 7), (4, 2))])
def test_a_number_for_each_epoch(changes: tuple[tuple[int, int], ...]) -> None:
    numbers = PerEpoch(3, changes)
    listed = [dict(changes).get(0, 3)]
    for epoch in range(1, 8):
        listed.append(dict(changes).get(epoch, listed[-1]))
    assert [numbers.at(epoch) for epoch in range(8)] == listed
    assert [numbers.before(epoch) for epoch in range(9)] == [sum(listed[:epoch]) for epoch in range(9)]
    places = [(epoch, place) for epoch, length in enumerate(listed) for place in range(length)]
    assert [numbers.locate(step) for step in range(len(places))] == places


def test_the_clock_counts_epochs_of_different_lengths() -> None:
    clock = Clock(0, PerEpoch(4, ((2, 2),)), 4)
    assert clock.steps == 12
    seen = []
    while not clock.done:
        seen.append((clock.epoch, clock.progress, clock.at_epoch_end))
        clock = clock.tick()
    assert [epoch for epoch, _, _ in seen] == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 2
    assert [share for _, share, _ in seen] == [k / 16 for k in range(8)] + [4 / 8, 5 / 8, 6 / 8, 7 / 8]
    assert [step for step, (_, _, end) in enumerate(seen) if end] == [4, 8, 10]
    assert (clock.epoch, clock.progress, clock.at_epoch_end) == (4, 1, True)

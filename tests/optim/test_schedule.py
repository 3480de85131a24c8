"""Learning rates against published values, torch's own schedulers and hand-made numbers."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from lsdali.clock import PerEpoch
from lsdali.optim import (
    SCHEDULES,
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OneCycleSchedule,
    PolynomialSchedule,
    ScheduleConfig,
    StepSchedule,
    schedule,
)
from lsdali.optim.schedule import Warm


def changes(milestones: list[int], epochs: int, spe: int = 3) -> list[tuple[int, float]]:
    """(epoch, rate) wherever the rate changes."""
    rate = schedule(StepSchedule(milestones=tuple(milestones)), 0.1, PerEpoch(spe), epochs)
    rates = [rate(s) for s in range(spe * epochs)]
    at = [s for s in range(len(rates)) if s == 0 or rates[s] != rates[s - 1]]
    assert all(s % spe == 0 for s in at)
    return [(s // spe, rates[s]) for s in at]


@pytest.mark.parametrize(
    ("milestones", "epochs"),
    [([101, 151], 200), ([31, 61, 91], 100), ([100, 150], 200), ([30, 60, 90], 100)],
)
def test_steps_fall_exactly_at_the_milestones(milestones: list[int], epochs: int) -> None:
    # Zipf label smoothing's published schedules, by its PyTorch and its MegEngine code.
    expected = [(e, 0.1**i) for i, e in enumerate([0, *milestones], 1)]
    assert changes(milestones, epochs) == [(e, pytest.approx(r, abs=1e-12)) for e, r in expected]


def test_warm_up_multiplies_the_steps() -> None:
    # LS-KD's ImageNet student: 0.1 ** (e // 80), in the first five epochs times (1 + i + e n) / (5 n).
    n = 7
    rate = schedule(StepSchedule(milestones=(80, 160), warmup_epochs=5), 0.1, PerEpoch(n), 200)
    for e in (0, 1, 4, 5, 79, 80, 160, 199):
        for i in range(n):
            warm = (1 + i + e * n) / (5 * n) if e < 5 else 1
            assert rate(e * n + i) == pytest.approx(0.1 * 0.1 ** (e // 80) * warm, abs=1e-15)


def test_polynomial_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, 40, power=1.7)
    rate = schedule(PolynomialSchedule(power=1.7), 0.4, PerEpoch(5), 8)
    for s in range(40):
        assert rate(s) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()
    assert schedule(PolynomialSchedule(final=0.1), 0.4, PerEpoch(5), 8)(40) == pytest.approx(0.04)


def test_one_cycle_is_torchs_between_its_corners() -> None:
    """torch counts to the last step, ours to the end of the run: a cycle of n steps there is one of n - 1 here."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=41, pct_start=13 / 41)
    rate = schedule(OneCycleSchedule(rise=12 / 40), 0.4, PerEpoch(5), 8)
    for s in range(40):
        assert rate(s) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()
    assert rate(12) == 0.4, "the peak"
    assert rate(40) == pytest.approx(0.4 / 25 / 1e4)
    with pytest.raises(ValidationError):
        OneCycleSchedule.model_validate({"name": "one_cycle", "warmup_epochs": 5})


def test_cosine_is_torchs() -> None:
    spe, epochs = 5, 8
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spe * epochs, eta_min=0.04)
    rate = schedule(CosineSchedule(final=0.1), 0.4, PerEpoch(spe), epochs)
    for s in range(spe * epochs):
        assert rate(s) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert rate(spe * epochs) == pytest.approx(0.04)


def test_linear_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 20)
    rate = schedule(LinearSchedule(final=0.25), 0.4, PerEpoch(4), 5)
    for s in range(20):
        assert rate(s) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("config", [CosineSchedule(warmup_epochs=2.5), LinearSchedule(warmup_epochs=2.5)])
def test_the_rest_of_the_run_is_what_follows_the_warm_up(config: CosineSchedule | LinearSchedule) -> None:
    rate = schedule(config, 1.0, PerEpoch(4), 10)
    assert [rate(s) for s in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rate(10) == 1.0
    assert rate(25) == pytest.approx(0.5)
    assert rate(40) == pytest.approx(0.0)
    rates = [rate(s) for s in range(10, 41)]
    assert rates == sorted(rates, reverse=True)


def test_constant() -> None:
    rate = schedule(ConstantSchedule(warmup_epochs=1), 0.3, PerEpoch(2), 3)
    assert [rate(s) for s in range(6)] == pytest.approx([0.15, 0.3, 0.3, 0.3, 0.3, 0.3])


def test_milestones_must_increase() -> None:
    for milestones in ((60, 30), (30, 30)):
        with pytest.raises(ValidationError, match="milestones must increase strictly"):
            StepSchedule(milestones=milestones)


def test_a_short_run_of_a_long_schedule_is_its_beginning() -> None:
    assert changes([30, 60], 2) == [(0, 0.1)]
    rate = schedule(CosineSchedule(warmup_epochs=5), 1.0, PerEpoch(2), 3)
    assert [rate(s) for s in range(6)] == pytest.approx([(s + 1) / 10 for s in range(6)])


def test_a_recipe_names_a_schedule() -> None:
    parse = TypeAdapter(ScheduleConfig).validate_python
    assert parse({"name": "step", "milestones": [30, 60]}) == StepSchedule(milestones=(30, 60))
    for name, kind in SCHEDULES.items():
        assert kind.model_fields["name"].default == name
    for wrong in ({"name": "step", "milestones": [1.5]}, {"name": "step", "milestones": ["30"]}):
        with pytest.raises(ValidationError):
            parse(wrong)


@pytest.mark.parametrize(
    "config",
    [
        CosineSchedule(warmup_epochs=1),
        LinearSchedule(),
        StepSchedule(milestones=(2,)),
        ConstantSchedule(warmup_epochs=2),
    ],
)
def test_epochs_of_other_lengths_leave_the_rate_of_an_epoch_alone(config: Warm) -> None:
    # Four steps an epoch, then two: each of these is where every second one of four would be.
    even, changed = (schedule(config, 0.4, PerEpoch(4, changes), 6) for changes in ((), ((3, 2),)))
    assert [changed(s) for s in range(12)] == [even(s) for s in range(12)]
    if not config.warmup_epochs:
        assert [changed(12 + s) for s in range(6)] == pytest.approx([even(12 + 2 * s) for s in range(6)])
    coarse = schedule(config, 0.4, PerEpoch(2), 6)
    assert [changed(12 + s) for s in range(6)] == [coarse(6 + s) for s in range(6)]

"""The contract of methods: one check for each promise.

`config` is the method's part of a recipe, `others` are more parts of it. Each check trains in `folder`, which has a
folder `images` (see small.make_images) beside or above it.
"""

import copy
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsdali import dist
from lsdali.batch import Batch
from lsdali.errors import UserError
from lsdali.models.digest import weights_digest
from lsdali.testing.small import equal, trainer_for, trainer_in_float64
from lsdali.trainer import Trainer

NOTHING: Mapping[str, Any] = types.MappingProxyType({})
AWAY = 1e-9
"""The most by which weights in float64 may differ between two ranks and one, as a share of their norm."""


def check_loss(config: Any, folder: Path, others: Mapping[str, Any] = NOTHING) -> None:
    """Check that the loss is one finite number, reaches every parameter, and writes to nothing."""
    trainer = trainer_for(config, folder, **others)
    batch = next(trainer.train.epoch(0))
    trainer.step(batch)  # so that a memory holds something
    before = copy.deepcopy(trainer.method.state_dict())
    weights = weights_digest(trainer.student)
    loss = trainer.method.loss(trainer.forward, batch, trainer.clock)
    assert loss.total.shape == (), f"the loss has the shape {list(loss.total.shape)}, not []"
    assert torch.isfinite(loss.total), "the loss is not finite"
    assert not loss.observed.requires_grad, "`observed` is not detached"
    assert loss.observed.shape[1] == trainer.classes, "`observed` has not one column a class"
    assert not any(term.requires_grad for term in loss.terms.values()), "a term is not detached"
    assert equal(before, trainer.method.state_dict()), "loss wrote to the method's state"
    loss.total.backward()  # type: ignore[no-untyped-call]
    without = [n for n, p in trainer.student.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient reached these parameters: {without}"
    stepped = {id(p) for group in trainer.optimizer.inner.param_groups for p in group["params"]}
    assert stepped == {id(p) for p in trainer.student.parameters()}, "the optimizer has not all parameters"
    assert weights_digest(trainer.student) != weights or not list(trainer.student.buffers())


def check_unknown_state(config: Any, folder: Path, others: Mapping[str, Any] = NOTHING) -> None:
    """State that the method does not know is refused."""
    method = trainer_for(config, folder, **others).method
    try:
        method.load_state_dict({**method.state_dict(), "nobody_knows_this": torch.zeros(1)})
    except UserError:
        return
    raise AssertionError("load_state_dict took state that the method does not know; raise UserError for it")


class Interrupted(Exception):
    """A run that a test ends."""


def stop_after(trainer: Trainer, steps: int) -> None:
    """Let the loader fail when `steps` batches have been read."""
    inner, count = trainer.train, 0

    class Failing:
        def epoch(self, step: int) -> Iterator[Batch]:
            nonlocal count
            for batch in inner.epoch(step):
                if count == steps:
                    raise Interrupted
                count += 1
                yield batch

    trainer.train = Failing()


def final_state(trainer: Trainer) -> dict[str, Any]:
    """Return all that decides how a run would go on, less its clocks on the wall."""
    parts = {name: copy.deepcopy(part.state_dict()) for name, part in trainer.parts.items()}
    parts["trainer"].pop("seconds")
    return parts


def check_resume(config: Any, folder: Path, others: Mapping[str, Any] = NOTHING) -> None:
    """Check that a run that goes on from a checkpoint in mid-epoch ends as it did before, on each rank and to the bit.

    An epoch must have 5 steps.
    """
    recipe: dict[str, Any] = {"ema": {"decay": 0.5}, "save": {"every_steps": 3, "keep": 9}, **others}
    whole = trainer_for(config, folder, **recipe)
    whole.run()
    dist.barrier()
    if dist.is_main():
        for later in range(7, 11):
            (folder / f"checkpoints/step-{later:010}.pt").unlink(missing_ok=True)
    dist.barrier()
    resumed = trainer_for(config, folder, **recipe)
    content = resumed.checkpoints.newest()
    assert content is not None
    assert content["step"] == 6, "the checkpoint inside the second epoch"
    resumed.restore(content["parts"])
    resumed.run()
    first, second = final_state(whole), final_state(resumed)
    for name in first:
        told = f"\n{first[name]}\n{second[name]}" if name == "trainer" else ""
        assert equal(first[name], second[name]), f"{name} differs after a resume{told}"


def weights_after(config: Any, folder: Path, others: Mapping[str, Any] = NOTHING) -> Tensor:
    """Return the final weights of a run with BatchNorm frozen, since each rank would normalise over its own samples."""
    trainer = trainer_in_float64(config, folder, **others)
    for module in trainer.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = types.MethodType(lambda self, mode=True: self, module.eval())  # type: ignore[method-assign]
    for _ in range(trainer.clock.epochs):
        for batch in trainer.train.epoch(trainer.clock.step):
            trainer.step(batch)
            trainer.clock = trainer.clock.tick()
        trainer.method.end_epoch(trainer.student, trainer.clock)
    return torch.cat([p.detach().flatten() for p in trainer.student.parameters()])


def save_weights(config: Any, folder: Path, others: Mapping[str, Any] = NOTHING) -> None:
    """Leave the weights of one process in the folder, for check_weights."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights_after(config, folder, others), folder / "one.pt")


def check_weights(config: Any, folder: Path, others: Mapping[str, Any] = NOTHING) -> None:
    """Check that two ranks train as one does, whose weights `save_weights` has left in the folder."""
    one = torch.load(folder / "one.pt")
    away = torch.dist(weights_after(config, folder, others), one) / one.norm()
    assert away < AWAY, f"the weights of two ranks are {away:.1e} of their norm away from those of one"

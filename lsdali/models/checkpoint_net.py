"""Networks out of checkpoints: the one way in which teachers, exports and evaluations open a trained run."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from lsdali import parts
from lsdali.errors import UserError
from lsdali.models import ModelConfig, build_network
from lsdali.models.student import Network


def same_classes(content: dict[str, Any], names: Sequence[str], what: str) -> None:
    """Raise UserError, about `what`, if the classes it was trained on lie in another order than `names`.

    Names that have none in common tell nothing: the same classes may be called otherwise in another data set. Nor do
    checkpoints that hold no names.
    """
    known = content.get("names", ())
    if set(known).isdisjoint(names):
        return
    for number, (known_as, name) in enumerate(zip(known, names, strict=False)):
        if known_as != name:
            raise UserError(
                f"{what} was trained with '{known_as}' as class {number}, which is '{name}' in the data: "
                "use the same classes in the same order (data.classes)"
            )


def open_network(content: dict[str, Any], what: str, weights: str = "model") -> Network:
    """Return the network of a checkpoint's content, on the CPU; `weights` are the model's own or their average, ema.

    Raises UserError, about `what`, if the model is not known, the weights are another's, or there is no average.
    """
    states = content["parts"]
    if weights == "ema" and weights not in states:
        raise UserError(f"{what} keeps no moving average of its weights (ema): evaluate those of the model")
    state = states["ema"]["weights"] if weights == "ema" else states["student"]
    prefix = "network."
    parts.use_installed()
    try:
        parts.use(content["recipe"].get("uses", ()))
    except UserError as error:
        raise UserError(f"{what}: uses: {error}") from error
    try:
        network = build_network(ModelConfig.model_validate(content["recipe"]["model"]), content["classes"])
        network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    except ValidationError as fault:
        reason = fault.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"{what} holds a model that is not known here: {reason}") from fault
    except RuntimeError as fault:
        name = content["recipe"]["model"]["name"]
        raise UserError(f"{what} does not hold the weights of the {name} it names") from fault
    return network

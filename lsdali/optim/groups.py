"""Which parameters are decayed."""

from typing import Any, Literal

from torch import nn

from lsdali.errors import UserError

Decay = Literal["weights", "all"]

# `_NormBase` is the common parent of every BatchNorm, SyncBatchNorm and InstanceNorm.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """One or two groups that hold each trainable parameter once, shared ones too, in the model's order.

    "weights" spares the parameters of norm layers and all with fewer than two dimensions (biases, scales);
    "all" decays everything, as many published recipes do. Raises UserError where nothing is trainable.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise UserError("the model has no trainable parameter: the optimizer needs at least one")
    if decay == "all":
        return [{"params": trained, "weight_decay": weight_decay}]
    norms = {id(p) for m in model.modules() if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    spared = {id(p) for p in trained if p.ndim <= 1 or id(p) in norms}
    groups = [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

"""From gradients to weights: optimizers, learning rates, precision, average of the weights."""

from lsdali.optim.configs import LAMB, LARS, OPTIMIZERS, SGD, Adam, AdamW, Nesterov, NovoGrad, OptimizerConfig, Timm
from lsdali.optim.ema import EMA, Average
from lsdali.optim.optimizer import Optimizer, build_optimizer
from lsdali.optim.precision import Precision
from lsdali.optim.schedule import (
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

__all__ = [
    "EMA",
    "LAMB",
    "LARS",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "Adam",
    "AdamW",
    "Average",
    "ConstantSchedule",
    "CosineSchedule",
    "LinearSchedule",
    "Nesterov",
    "NovoGrad",
    "OneCycleSchedule",
    "Optimizer",
    "OptimizerConfig",
    "PolynomialSchedule",
    "Precision",
    "ScheduleConfig",
    "StepSchedule",
    "Timm",
    "build_optimizer",
    "schedule",
]

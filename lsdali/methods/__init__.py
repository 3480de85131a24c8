"""The methods that a recipe can name."""

from lsdali import parts
from lsdali.methods.bake import BatchEnsembling
from lsdali.methods.base import Method
from lsdali.methods.bce import BinaryCrossEntropy
from lsdali.methods.ce import CrossEntropy
from lsdali.methods.confusion import PairwiseConfusion
from lsdali.methods.correction import BackwardCorrection, ForwardCorrection
from lsdali.methods.correlation import CorrelationDistillation
from lsdali.methods.cskd import ClassWiseDistillation
from lsdali.methods.disturb import DisturbLabel
from lsdali.methods.dkd import DecoupledDistillation
from lsdali.methods.exits import DeepSupervision
from lsdali.methods.ibls import InstanceSmoothing
from lsdali.methods.ibls_cls import ClassSmoothing
from lsdali.methods.kd import KnowledgeDistillation
from lsdali.methods.ls import LabelSmoothing
from lsdali.methods.multi_level import MultiLevelDistillation
from lsdali.methods.nkd import NormalisedDistillation, NormalisedSelfDistillation
from lsdali.methods.noisy import (
    GeneralisedCrossEntropy,
    HardBootstrap,
    JointOptimisation,
    SoftBootstrap,
    SymmetricCrossEntropy,
)
from lsdali.methods.ols import OnlineLabelSmoothing
from lsdali.methods.ols_deep import DeepOnlineLabelSmoothing
from lsdali.methods.pskd import ProgressiveDistillation
from lsdali.methods.tfkd import TeacherFreeDistillation
from lsdali.methods.zls import ZipfLabelSmoothing
from lsdali.methods.zls_kd import ZipfWithTeacher

METHODS: dict[str, type[Method]] = {
    "ce": CrossEntropy,
    "ls": LabelSmoothing,
    "bce": BinaryCrossEntropy,
    "zls": ZipfLabelSmoothing,
    "kd": KnowledgeDistillation,
    "zls_kd": ZipfWithTeacher,
    "ols": OnlineLabelSmoothing,
    "ols_deep": DeepOnlineLabelSmoothing,
    "exits": DeepSupervision,
    "sce": SymmetricCrossEntropy,
    "gce": GeneralisedCrossEntropy,
    "joint": JointOptimisation,
    "bootstrap_soft": SoftBootstrap,
    "bootstrap_hard": HardBootstrap,
    "forward": ForwardCorrection,
    "backward": BackwardCorrection,
    "disturb": DisturbLabel,
    "pairwise_confusion": PairwiseConfusion,
    "ibls": InstanceSmoothing,
    "ibls_cls": ClassSmoothing,
    "pskd": ProgressiveDistillation,
    "tfkd": TeacherFreeDistillation,
    "cskd": ClassWiseDistillation,
    "bake": BatchEnsembling,
    "dkd": DecoupledDistillation,
    "dist": CorrelationDistillation,
    "multi_level": MultiLevelDistillation,
    "nkd": NormalisedDistillation,
    "uskd": NormalisedSelfDistillation,
}

parts.opened("METHODS", METHODS, "method", parts.tagged(Method, lambda method: method.Config))

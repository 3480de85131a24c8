"""The methods that a recipe can name."""

from lsdali.methods.bake import BatchEnsembling
from lsdali.methods.base import Method
from lsdali.methods.ce import CrossEntropy
from lsdali.methods.cskd import ClassWiseDistillation
from lsdali.methods.ibls import InstanceSmoothing
from lsdali.methods.kd import KnowledgeDistillation
from lsdali.methods.ls import LabelSmoothing
from lsdali.methods.pskd import ProgressiveDistillation
from lsdali.methods.tfkd import TeacherFreeDistillation
from lsdali.methods.zls import ZipfLabelSmoothing

METHODS: dict[str, type[Method]] = {
    "ce": CrossEntropy,
    "ls": LabelSmoothing,
    "zls": ZipfLabelSmoothing,
    "kd": KnowledgeDistillation,
    "ibls": InstanceSmoothing,
    "pskd": ProgressiveDistillation,
    "tfkd": TeacherFreeDistillation,
    "cskd": ClassWiseDistillation,
    "bake": BatchEnsembling,
}

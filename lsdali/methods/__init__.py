"""The methods that a recipe can name."""

from lsdali.methods.base import Method
from lsdali.methods.ce import CrossEntropy
from lsdali.methods.kd import KnowledgeDistillation
from lsdali.methods.ls import LabelSmoothing
from lsdali.methods.zls import ZipfLabelSmoothing

METHODS: dict[str, type[Method]] = {
    "ce": CrossEntropy,
    "ls": LabelSmoothing,
    "zls": ZipfLabelSmoothing,
    "kd": KnowledgeDistillation,
}

"""The base of methods with one teacher."""

from typing import Any

from lsdali.methods.base import Method, MethodContext, matching_teacher
from lsdali.models.teacher_configs import TeacherConfig


class TaughtMethod(Method):
    """A method whose target is the prediction of a teacher for the same images."""

    class Config(Method.Config):
        """The part of the recipe with the teacher."""

        teacher: TeacherConfig
        """The network whose prediction is the target."""

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        self.teacher = matching_teacher(config.teacher, context)

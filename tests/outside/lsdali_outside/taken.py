"""A module whose method has a name of ours."""

from lsdali_outside.parts import Poly1

METHODS = {"ce": Poly1}

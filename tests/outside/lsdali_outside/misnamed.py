"""A module whose method has another name in the dict than in its config."""

from lsdali_outside.parts import Poly1

METHODS = {"focal": Poly1}

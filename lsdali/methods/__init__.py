"""The methods that a recipe can name."""

from lsdali import parts
from lsdali.methods.base import Method

METHOD_FILES = (
    "ce",
    "ls",
    "bce",
    "zls",
    "kd",
    "zls_kd",
    "ols",
    "ols_deep",
    "exits",
    "noisy",
    "correction",
    "disturb",
    "confusion",
    "ibls",
    "ibls_cls",
    "pskd",
    "tfkd",
    "cskd",
    "bake",
    "dkd",
    "correlation",
    "multi_level",
    "nkd",
)
"""Files beside this one, each with a dict METHODS."""

METHODS: dict[str, type[Method]] = parts.from_files("lsdali.methods", METHOD_FILES, "METHODS")
parts.opened("METHODS", METHODS, "method", parts.tagged(Method, lambda method: method.Config))

"""Sentences about names that nobody knows."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """'there is no <kind> <name>; did you mean <nearest>?', or all known names where none is near."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(names)}"
    return f"there is no {kind} '{name}'; {hint}"

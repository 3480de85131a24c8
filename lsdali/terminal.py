"""Output to terminal, pages and tables: names from outside are escaped here, and never break a stream.

Names of files, folders and classes come from whoever made them. Raw, an escape sequence in one could clear the screen,
an override of the writing direction could show another name, and what the stream cannot encode would end the command.
"""

import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

SEPARATORS = (0x2028, 0x2029)
DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
INVISIBLE = (*range(0x20), *range(0x7F, 0xA0), *SEPARATORS, *DIRECTIONS, *range(0xD800, 0xE000))
ESCAPES = {code: repr(chr(code))[1:-1] if code < 0x100 else f"\\u{code:04x}" for code in INVISIBLE}
LINES = {code: text for code, text in ESCAPES.items() if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    r"""Return a text of one line: control characters, directions and halves of surrogates as \x1b, \u202e and so on."""
    return text.translate(ESCAPES)


def printable_lines(text: str) -> str:
    """Return the same for a text of several lines, whose ends and tabs stay."""
    return text.translate(LINES)


def say(*values: Any, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print like `print`, but escaped, and with escapes for what the stream cannot encode."""
    stream = sys.stdout if file is None else file
    text = printable_lines(" ".join(map(str, values)))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=flush)


def console(width: int | None = None) -> "Console":
    """Return rich's view of the terminal: `width` columns if it is none. What it is given is to be escaped."""
    from rich.console import Console

    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    return Console(width=None if sys.stdout.isatty() else width)

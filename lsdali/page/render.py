"""A page from one of the templates beside this file, all of which extend base.html."""

import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import lsdali
from lsdali.errors import UserError
from lsdali.terminal import printable_lines

FOLDER = Path(__file__).parent


def render(template: str, command: str, **values: Any) -> str:
    """Return the page as text. Values are escaped; `command` goes into the footer, with version, commit and date.

    Characters that are invisible, or that UTF-8 cannot encode, as in the name of a file with other bytes, are escaped.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    about = {
        "version": lsdali.__version__,
        "commit": commit(),
        "command": command,
        "date": datetime.now().astimezone().isoformat(" ", "seconds"),
    }
    page = environment.get_template(template).render(about=about, **values)
    return printable_lines(page)


def commit() -> str | None:
    """Return the commit of lsdali's source, `-dirty` with changes; None outside of its repository."""
    root = FOLDER.parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file. Raises UserError if it cannot be written."""
    try:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None

"""The keys of a recipe: `lsdali keys [PATH]`, such as `lsdali keys optimizer`, `method.zls` or `data.imagenet.train`.

Where a part has several kinds, the path names one, or all are listed.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from lsdali import parts
from lsdali.errors import command
from lsdali.terminal import say


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lsdali keys", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", nargs="?", default="", metavar="PATH", help="keys and kinds, joined by points")
    parser.add_argument("--json-schema", action="store_true", help="print the JSON Schema of recipes, for editors")
    parser.add_argument("--uses", action="append", default=[], metavar="MODULE", help="also what this module has")
    parts.add_refusal(parser)
    options = parser.parse_args(argv)
    parts.use_installed()
    parts.use(options.uses)
    say(schema_text() if options.json_schema else key_text(options.path))
    return 0


def key_text(path: str) -> str:
    from lsdali.recipe import Recipe
    from lsdali.recipe.key_lines import lines_at

    return "\n".join(lines_at(Recipe, path))


def schema_text() -> str:
    from lsdali.recipe.editor import editor_schema

    return json.dumps(editor_schema(), indent=1)


if __name__ == "__main__":
    sys.exit(main())

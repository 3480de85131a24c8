"""`python -m lsdali VERB ...` is `lsdali VERB ...`."""

import sys

from lsdali.cli import main

if __name__ == "__main__":
    sys.exit(main())

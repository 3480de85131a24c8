"""`python -m lsdali.report`."""

import sys

from lsdali.report import main

if __name__ == "__main__":
    sys.exit(main())

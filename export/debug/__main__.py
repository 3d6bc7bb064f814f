"""``python -m export.debug``; see `export.debug.command`."""

import logging
import sys

from export.debug.command import main

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())

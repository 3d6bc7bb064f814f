"""``python -m export.build``; see `export.build.command`."""

import logging
import sys

from export.build.command import main

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())

"""``python -m export.verify``; see `export.verify.command`."""

import logging
import sys

from export.verify.command import main

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())

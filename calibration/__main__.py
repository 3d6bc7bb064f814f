"""``python -m calibration``; see `calibration.cli`."""

import logging
import sys

from calibration.cli import main

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())

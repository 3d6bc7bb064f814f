"""``python -m calibration``; see `calibration.command`."""

import logging
import sys

from calibration.command import main

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(main())

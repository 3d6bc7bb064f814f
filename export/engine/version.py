"""Which versions of TensorRT read the graphs."""

import re

OLDEST, BELOW = (10, 15), (12, 0)
"""TensorRT's parser knows the graphs' operators Attention since 10.14 and RMSNormalization since 10.15. What comes
after 11 is not known."""


def check_version(version: str) -> None:
    """Raise RuntimeError unless this version of TensorRT, such as 10.15.1.29, can build engines from the graphs."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version, re.ASCII)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if OLDEST <= number < BELOW:
        return
    why = "what later ones take is not known"
    if number < OLDEST:
        why = (
            "older ones do not know the operators Attention and RMSNormalization of the graphs. On Jetson that is "
            "JetPack 7.2 or later; JetPack 6 has 10.3"
        )
    raise RuntimeError(f"TensorRT {version} is installed, and --backend tensorrt needs 10.15, 10.16 or 11: {why}")

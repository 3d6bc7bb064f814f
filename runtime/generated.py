"""What a pipeline gives back."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Generated:
    """Pictures and what they were made with."""

    images: np.ndarray
    """(B, H, W, 3) uint8, RGB."""
    used: dict[str, Any]
    """Everything that was used, the random seed included, as plain values."""
    seconds: float
    """Wall time, loading not included."""

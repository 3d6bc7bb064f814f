"""How much can be sent: responses pass through memory that the server shares with the models' processes."""

import os
from collections.abc import Mapping

import numpy as np

PLACE = "/dev/shm"
_MARGIN = 4 << 20
"""Bytes beside the arrays: the memory grows in whole megabytes, and messages must fit in any case."""


class Room:
    """What this process has been able to send. The shared memory grows to the largest response and stays so."""

    def __init__(self) -> None:
        self.largest = 0
        """Bytes of the largest response so far."""

    def check(self, size: int) -> None:
        """Raise OSError unless a response of this size can be sent."""
        if size <= self.largest:
            return
        try:
            status = os.statvfs(PLACE)
        except OSError:  # it is elsewhere; Triton will find out
            return
        free = status.f_bavail * status.f_frsize
        if size - self.largest + _MARGIN > free:
            raise OSError(
                f"the pictures have {size / 1e6:.0f} MB, and the server's shared memory ({PLACE}) has "
                f"{(free + self.largest) / 1e6:.0f} MB left; ask for fewer or smaller ones at a time, or for PNG, or "
                "give the server more (--shm-size)"
            )

    def sent(self, size: int) -> None:
        """A response of this size was sent."""
        self.largest = max(self.largest, size)


def size_of(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the outputs of a response."""
    return sum(
        sum(len(value) for value in array.flat) if array.dtype == object else array.nbytes for array in arrays.values()
    )

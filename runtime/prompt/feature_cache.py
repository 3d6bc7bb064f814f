"""Text features of the prompts that were encoded last: another picture of one of them does not encode it again."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

import numpy as np

CAPACITY = 256 * 2**20
"""Bytes kept: with the released weights (4608 float32 for a token) about 14,500 tokens, or 7 of the longest prompts."""

Key = tuple[str, tuple[int, ...], bytes]
"""Type, shape and bytes of the token ids."""


class FeatureCache:
    """Text features (1, T, E) float32 by token ids; the least recently used go first when the bytes run out.

    Threads may share it.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """`capacity`: bytes to keep at most."""
        self.capacity, self.size = capacity, 0
        self.features: OrderedDict[Key, np.ndarray] = OrderedDict()
        self.lock = Lock()

    def get(self, token_ids: np.ndarray, encode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The features of `token_ids` (1, T) int64, by `encode` unless they are kept. They cannot be written to."""
        key = token_ids.dtype.str, token_ids.shape, token_ids.tobytes()
        with self.lock:
            if key in self.features:
                self.features.move_to_end(key)
                return self.features[key]
        features = encode(token_ids)
        features.flags.writeable = False
        self._keep(key, features)
        return features

    def clear(self) -> None:
        """Forget all."""
        with self.lock:
            self.features.clear()
            self.size = 0

    def _keep(self, key: Key, features: np.ndarray) -> None:
        with self.lock:
            if features.nbytes > self.capacity or key in self.features:  # another thread may have been faster
                return
            self.features[key] = features
            self.size += features.nbytes
            while self.size > self.capacity:
                _, oldest = self.features.popitem(last=False)
                self.size -= oldest.nbytes

"""How far two arrays are apart."""

import numpy as np


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """``|got - wanted| / |wanted|`` in the Euclidean norm, computed in float64."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, f"shapes {got.shape} and {wanted.shape}"
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))

"""Which tests are slow, told by what they use and where they lie: ``make check`` leaves them out.

Slow is what exports a checkpoint, builds an engine, trains, or starts a server; it takes seconds to minutes a test.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FIXTURES = {"demo_bundle", "peer_bundle", "shared"}
"""Fixtures that export a checkpoint, and the one that does so once for all processes."""
PLACES = (
    "export/build",
    "export/engine/test_builder.py",
    "export/engine/test_forms.py",
    "export/engine/test_plan.py",
    "export/engine/test_profile_builds.py",
    "export/engine/test_scratch.py",
    "export/engine/test_tensorrt_builds.py",
    "export/graph/test_float8.py",
    "export/graph/test_nf4.py",
    "export/graph/test_tile_graphs.py",
    "export/graph/test_vae_attention.py",
    "export/verify",
    "scripts/bench/test_gpu.py",
    "test_end_to_end.py",
    "training/test_learned.py",
    "training/test_train.py",
    "triton_server",
)
"""Folders and files whose tests call the exporter, a builder, the training or a server themselves."""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark the slow tests."""
    places = [TESTS / place for place in PLACES]
    for item in items:
        inside = any(item.path.is_relative_to(place) for place in places)
        if inside or FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")

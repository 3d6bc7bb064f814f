"""The one reading of a checkpoint's files beside the work."""

import hashlib

from export.build.scan import Scan
from export.demo_model import DEMO_CHECKPOINT
from model.checkpoint.directory import open_checkpoint


def test_tensors_that_several_jobs_are_read_from():
    """Two backends, or a graph for tiles beside the whole one, ask for the same tensors: each is checked once."""
    checkpoint = open_checkpoint(DEMO_CHECKPOINT)
    tensors = [tensor for stage in checkpoint.sources for tensor in checkpoint.stored(stage)]
    scan = Scan([*tensors, *tensors])
    digests = scan.digests(tensors)
    scan.close()
    assert digests and set(digests) == {tensor.file.resolve() for tensor in tensors}
    assert all(digest == hashlib.sha256(file.read_bytes()).hexdigest() for file, digest in digests.items())

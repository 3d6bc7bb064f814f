"""The cache of text features, and that a pipeline uses it."""

import threading

import numpy as np
import pytest

from runtime import Pipeline
from runtime.errors import NonFiniteError
from runtime.prompt.feature_cache import FeatureCache


class Encoder:
    """Counts its calls; gives each token eight features."""

    def __init__(self):
        self.calls = []

    def __call__(self, token_ids):
        self.calls.append(token_ids.tolist())
        return np.repeat(token_ids[..., None], 8, axis=2).astype(np.float32)


def ids(*tokens):
    return np.array([tokens], dtype=np.int64)


def test_same_tokens_are_encoded_once():
    cache, encoder = FeatureCache(), Encoder()
    first, again = (cache.get(ids(1, 2), encoder) for _ in range(2))
    assert again is first and len(encoder.calls) == 1
    assert np.array_equal(first, Encoder()(ids(1, 2)))
    cache.get(ids(2, 1), encoder)
    cache.get(np.array([[1], [2]], dtype=np.int64), encoder)  # the same bytes in another shape
    assert len(encoder.calls) == 3


def test_the_least_recently_used_go_first():
    cache, encoder = FeatureCache(capacity=3 * 32), Encoder()  # one token's features are 32 bytes
    for token in (1, 2, 3, 1, 4):
        cache.get(ids(token), encoder)
    encoder.calls.clear()
    for token in (1, 3, 4, 2):
        cache.get(ids(token), encoder)
    assert encoder.calls == [[[2]]] and cache.size == 3 * 32


def test_what_is_larger_than_the_cache_is_not_kept():
    cache, encoder = FeatureCache(capacity=40), Encoder()
    cache.get(ids(1), encoder)
    cache.get(ids(2, 3), encoder)
    assert list(cache.features) == [("<i8", (1, 1), ids(1).tobytes())] and cache.size == 32
    cache.clear()
    assert not cache.features and cache.size == 0


def test_two_threads_with_one_prompt():
    """Both encode it, as neither has finished when the other begins; it is kept and counted once."""
    cache, meet = FeatureCache(), threading.Barrier(2, timeout=10)

    def encode(token_ids):
        meet.wait()
        return Encoder()(token_ids)

    threads = [threading.Thread(target=cache.get, args=(ids(1), encode)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache.features) == 1 and cache.size == 32


def test_kept_features_cannot_be_altered():
    cache = FeatureCache()
    with pytest.raises(ValueError, match="read-only"):
        cache.get(ids(1), Encoder())[0, 0, 0] = 1


@pytest.fixture
def counted(demo_bundle):
    """A pipeline, and the prompts that its text encoder has seen."""
    pipeline, seen = Pipeline.load(demo_bundle), []
    real = pipeline.graphs["text_encoder"]
    pipeline.graphs["text_encoder"] = lambda **feeds: seen.append(feeds["input_ids"].size) or real(**feeds)
    return pipeline, seen


def test_another_seed_of_a_prompt_does_not_encode_again(counted):
    pipeline, seen = counted
    first = pipeline.generate("a red circle", steps=1, seed=1).images
    pipeline.generate("a red circle", steps=1, seed=2)
    assert len(seen) == 1
    pipeline.generate("a blue star", steps=1, seed=1)
    assert len(seen) == 2
    assert np.array_equal(pipeline.generate("a red circle", steps=1, seed=1).images, first) and len(seen) == 2


def test_features_that_are_not_finite_are_not_kept(demo_bundle):
    pipeline = Pipeline.load(demo_bundle)
    real = pipeline.graphs["text_encoder"]
    pipeline.graphs["text_encoder"] = lambda **feeds: real(**feeds) * np.float32(np.nan)
    with pytest.raises(NonFiniteError, match="the text encoder gave NaN"):
        pipeline.generate("x", steps=1)
    pipeline.graphs["text_encoder"] = real
    assert pipeline.generate("x", steps=1).images.size

"""How ONNX Runtime reads 8-bit weights: multiplied out or packed where they fit, else from their file in each call."""

from dataclasses import replace

import pytest

from runtime import Pipeline, RequestError
from runtime.backend import ort
from runtime.bundle.manifest import read_manifest

GB = 10**9


@pytest.fixture
def sessions(monkeypatch):
    """Whether each session that is opened reads its weights frugally, by graph."""
    opened, session = {}, ort._session

    def noted(file, codes, providers, threads, frugal, shares):
        opened[file.stem] = frugal
        return session(file, codes, providers, threads, frugal, shares)

    monkeypatch.setattr(ort, "_session", noted)
    return opened


def open_all(bundle, size, most=None):
    """Open three graphs that say their weights have `size` bytes."""
    manifest = read_manifest(bundle)
    open_graph = ort.opener(bundle, "cpu", 1, most)
    for name in ("text_encoder", "dit_cond", "dit_uncond"):
        open_graph(name, replace(manifest.graphs[name], expanded_bytes=size)).close()


def test_what_is_available_counts(demo_bundle, sessions, monkeypatch):
    for available, frugal in ((20 * GB, False), (9 * GB, True), (None, False)):
        monkeypatch.setattr(ort, "available_memory", lambda available=available: available)
        open_all(demo_bundle, 8 * GB)
        assert set(sessions.values()) == {frugal}, available


def test_a_part_of_it_is_shared_by_the_graphs(demo_bundle, sessions, monkeypatch):
    """Nothing is taken yet when the second graph is looked at: what the first will take is counted."""
    monkeypatch.setattr(ort, "available_memory", lambda: 100 * GB)
    open_all(demo_bundle, 8 * GB, most=20 * GB)
    # 0.8 of 20 GB, then of the 12 GB that are left, then of 4 GB.
    assert sessions == {"text_encoder": False, "dit_cond": False, "dit_uncond": True}
    open_all(demo_bundle, 8 * GB, most=40 * GB)
    assert not any(sessions.values())
    open_all(demo_bundle, 8 * GB, most=1)
    assert all(sessions.values())


def test_integers_are_packed_all_or_none(demo_bundle, sessions, monkeypatch):
    """The transformers run in each step, and what the text encoder took would be missing then."""
    manifest = read_manifest(demo_bundle)
    names = ("text_encoder", "dit_cond", "dit_uncond")
    specs = {name: replace(manifest.graphs[name], expanded_bytes=8 * GB, codes="int8") for name in names}
    for available, frugal in ((31 * GB, False), (29 * GB, True)):
        monkeypatch.setattr(ort, "available_memory", lambda available=available: available)
        open_graph = ort.opener(demo_bundle, "cpu", 1, None, list(specs.values()))
        for name in names:
            open_graph(name, specs[name]).close()
        assert set(sessions.values()) == {frugal}, "0.8 of it, for 24 GB"


@pytest.mark.parametrize("most", [0, -1])
def test_no_memory_is_refused(demo_bundle, most):
    with pytest.raises(RequestError, match=f"max_memory is {most}, wanted bytes above 0"):
        Pipeline.load(demo_bundle, max_memory=most)

"""The user's cache directory, and users who have none."""

import pwd
import sys
from pathlib import Path

import pytest

from runtime import Pipeline
from runtime.user_cache import cache_directory


@pytest.fixture
def homeless(monkeypatch):
    """A user without HOME and without an entry in the list of users."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_places(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == Path("/home/me/.cache/ideogram4-trt")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_directory() == Path("/cache/ideogram4-trt")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/data")
    assert cache_directory() == Path("/data/ideogram4-trt")
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_directory() == Path("/home/me/AppData/Local/ideogram4-trt")


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_none_and_needs_none(demo_bundle):
    assert cache_directory() is None
    with Pipeline.load(demo_bundle) as pipeline:
        pipeline.generate("x", steps=1, seed=0)

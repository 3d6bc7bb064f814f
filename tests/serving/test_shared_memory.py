"""Whether a response can be sent."""

import os

import numpy as np
import pytest

from serving import shared_memory
from serving.shared_memory import Room, size_of

MB = 10**6


@pytest.fixture
def free(monkeypatch):
    """free(bytes): what the shared memory has left from now on."""

    class Status:
        f_frsize = 4096

    def leave(size):
        Status.f_bavail = size // 4096
        monkeypatch.setattr(os, "statvfs", lambda place: Status)

    return leave


def test_what_fits_and_what_does_not(free):
    free(20 * MB)
    room = Room()
    room.check(15 * MB)
    message = r"the pictures have 17 MB, and the server's shared memory \(/dev/shm\) has 20 MB left; .*--shm-size"
    with pytest.raises(OSError, match=message):
        room.check(17 * MB)


def test_what_was_sent_before_can_be_sent_again(free):
    room = Room()
    room.sent(50 * MB)
    free(5 * MB)
    room.check(50 * MB)
    room.check(50 * MB + 500_000)
    with pytest.raises(OSError, match="has 55 MB left"):
        room.check(52 * MB)
    room.sent(1)
    room.check(50 * MB)


def test_systems_that_have_it_elsewhere(monkeypatch):
    monkeypatch.setattr(shared_memory, "PLACE", "/nowhere")
    Room().check(10**15)


def test_sizes():
    texts = np.empty((2, 1), object)
    texts[:, 0] = [b"ab", b"cde"]
    assert size_of({"image": np.zeros((2, 4, 4, 3), np.uint8), "seed": np.zeros((2, 1), np.int64), "png": texts}) == 117
    assert size_of({}) == 0

"""Compiled kernels on disk."""

import logging
import os

from runtime.tensorrt import engines


def test_kernels_are_kept_for_the_next_start(box, tmp_path):
    box.open()
    box.close()
    (file,) = box.kernels.iterdir()
    assert file.name.startswith("rtx-1.7.1.116-sm89-fake-rtx-4090-") and file.suffix == ".kernels"
    content = file.read_bytes()
    assert content.startswith(b"kernels:") and content.count(b";") == 4
    box.open()
    assert box.trt.contexts[-1].config.cache.content.startswith(content)


def test_kernels_that_do_not_fit_are_replaced(box):
    box.open()
    box.close()
    (file,) = box.kernels.iterdir()
    file.write_bytes(b"of another driver")
    box.open()
    box.close()
    assert file.read_bytes().startswith(b"kernels:")


def test_kernels_that_did_not_change_are_not_written(box):
    box.open()
    box.close()
    (file,) = box.kernels.iterdir()
    os.utime(file, (1, 1))
    for context in box.trt.contexts:
        context.config.cache.content = file.read_bytes()
    store = engines.KernelCache(file)
    config = box.trt.contexts[0].config
    store.attach(config)
    store.store()
    assert file.stat().st_mtime == 1


def test_a_directory_that_cannot_be_written_is_no_error(box, caplog):
    box.kernels.write_text("a file in the way")
    box.open()
    with caplog.at_level(logging.WARNING):
        box.close()
    assert "cannot keep compiled kernels in" in caplog.text


def test_without_a_cache_directory_nothing_is_kept(box, caplog, monkeypatch):
    """An optional cache must not keep engines from loading."""
    monkeypatch.setattr(engines, "cache_directory", lambda: None)
    box.kernels = None
    with caplog.at_level(logging.WARNING):
        box.open()
        assert box.trt.contexts[-1].config.cache is not None, "the engines share what they compile all the same"
        box.close()
    assert caplog.text.count("compiled kernels are not kept: there is no home directory; set XDG_CACHE_HOME") == 1


def test_kernels_that_tensorrt_does_not_give(box, caplog):
    """`serialize` returns None where it fails."""
    box.open()
    box.trt.contexts[0].config.cache.fails = True
    with caplog.at_level(logging.WARNING):
        box.close()
    assert "TensorRT-RTX gives none" in caplog.text and not box.kernels.exists() and not box.cudart.allocated


def test_kernels_that_cannot_be_read(box, caplog):
    box.open()
    box.close()
    (file,) = box.kernels.iterdir()
    file.unlink()
    file.mkdir()
    with caplog.at_level(logging.WARNING):
        box.open()
    assert f"cannot read {file}: [Errno 21]" in caplog.text


def test_a_cache_that_tensorrt_does_not_take(box, caplog):
    box.trt.refused = {"cache"}
    with caplog.at_level(logging.WARNING):
        box.open()
    assert "takes no cache of compiled kernels" in caplog.text

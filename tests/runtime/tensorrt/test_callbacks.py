"""What happens while TensorRT calls back: errors and signals come out when it has returned, and nothing is left."""

import logging
import os
import signal
import threading

import numpy as np
import pytest
from support.engines.box import STEPS, feeds, wanted
from support.engines.bundles import TOY
from support.engines.fake_tensorrt import call_back

from runtime.errors import BackendError
from runtime.tensorrt.callbacks import Callbacks


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_what_a_callback_raises_comes_out_after_the_call(capsys):
    callbacks = Callbacks()
    steps = []

    @callbacks.guarded(b"")
    def read():
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"), callbacks.delivered():
        steps.append(call_back(read))
        steps.append(callbacks.ending)
    assert steps == [b"", True] and not callbacks.ending
    assert not capsys.readouterr().err, "the bindings had nothing to print"
    with callbacks.delivered():
        pass  # raised once


def test_it_is_the_cause_of_what_the_call_raises():
    callbacks = Callbacks()
    read = callbacks.guarded(b"")(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught, callbacks.delivered():
        read()
        raise BackendError("loading failed")
    assert isinstance(caught.value.__context__, BackendError)


def test_a_signal_waits_for_the_end_of_the_call():
    """Python would handle it at the callback's first bytecode, outside of any try."""
    callbacks, steps = Callbacks(), []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), callbacks.delivered():
        interrupt()
        steps.append(callbacks.ending)
    assert steps == [True] and signal.getsignal(signal.SIGINT) is before and not callbacks.ending


def test_handlers_of_the_program_are_called(monkeypatch):
    """As that of the commands, which ends them with SIGTERM's exit code."""

    def end(number, frame):
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        callbacks = Callbacks()
        with pytest.raises(SystemExit) as caught, callbacks.delivered():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_threads_have_no_signals():
    callbacks, done = Callbacks(), []

    def run():
        with callbacks.delivered():
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done


def test_ctrl_c_while_a_plan_is_loaded(box):
    """It ends the loading, is not lost in the reader, and leaves nothing on the device."""
    graphs = box.open("staged", STEPS)
    graph, interrupt_once = graphs["dit_cond"], []
    open_plan = graph.engine.package.open_plan

    def interrupted(file):
        reader = open_plan(file)
        interrupt_once.append(interrupt())
        return reader

    graph.engine.package.open_plan = interrupted
    with pytest.raises(KeyboardInterrupt):
        graph(**feeds())
    assert interrupt_once == [None] and box.weights() == []
    graph.engine.package.open_plan = open_plan
    values = feeds()
    assert np.array_equal(graph(**values), wanted(values))


def test_ctrl_c_while_an_engine_runs(box, monkeypatch):
    """The call ends and its result is dropped; the next one is right."""
    graph = box.open()["dit_cond"]
    function = TOY["dit_cond"].function
    with monkeypatch.context() as interrupted:
        interrupted.setattr(TOY["dit_cond"], "function", lambda **values: interrupt() or function(**values))
        with pytest.raises(KeyboardInterrupt):
            graph(**feeds())
    values = feeds()
    assert np.array_equal(graph(**values), wanted(values))


def test_ctrl_c_while_closing(box, monkeypatch):
    """Everything is freed before it comes out."""
    graph = box.open()["dit_cond"]
    graph(**feeds())
    drop = graph.engine.drop
    monkeypatch.setattr(graph.engine, "drop", lambda: interrupt() or drop())
    with pytest.raises(KeyboardInterrupt):
        box.close()
    assert not box.cudart.allocated and not box.cudart.pinned


def test_a_logger_that_fails(box, monkeypatch, capsys):
    """Python's logging calls handlers of the program, which may raise anything."""

    class Handler(logging.Handler):
        def emit(self, record):
            raise RuntimeError("the log is full")

    handler = Handler()
    logger = logging.getLogger("runtime.tensorrt.package")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    logger.addHandler(handler)
    graph = box.open()["dit_cond"]
    box.trt.fail_running = True
    try:
        with pytest.raises(RuntimeError, match="the log is full"):
            graph(**feeds())
    finally:
        logger.removeHandler(handler)
    assert "Exception caught" not in capsys.readouterr().err


def test_the_bindings_own_errors_are_ours(box):
    """`infer_shapes` raises RuntimeError, by its docstring."""
    graph = box.open()["dit_cond"]
    box.trt.refused = {"infer_shapes"}
    with pytest.raises(BackendError, match=r"TensorRT-RTX 1.7.1.116 failed: Shape inference failed"):
        graph(**feeds())


def test_a_message_of_another_call_is_no_reason(box):
    graph = box.open("staged", STEPS)["dit_cond"]
    graph.engine.package.log.last_error = "of long ago"
    box.trt.refused = {"config"}
    with pytest.raises(BackendError, match=r"failed configuring dit_cond: it gave no reason$"):
        graph(**feeds())

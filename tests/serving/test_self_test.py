"""A model that proves itself before it is ready."""

import logging

import pytest
from support.tampering import Tampered, with_output

from runtime.selftest.graphs import SelfTestError
from serving.service import Engine
from serving.settings import Limits, Settings


def settings(bundle, self_test=True):
    return Settings(bundle, "ort", "cpu", 1, "off", True, Limits(4), self_test=self_test)


@pytest.fixture
def wrong(demo_bundle, tmp_path):
    bundle = Tampered(demo_bundle, tmp_path / "bundle")
    bundle.self_test(lambda test: with_output(test, "dit_uncond", lambda velocity: -velocity))
    return bundle.directory


def test_a_good_bundle_is_loaded(demo_bundle, caplog):
    caplog.set_level(logging.INFO)
    Engine.load(settings(demo_bundle)).pipeline.close()
    assert "self-test of" in caplog.text and "dit_uncond" in caplog.text and "FAILED" not in caplog.text


def test_a_wrong_one_is_not_and_the_log_says_why(wrong, caplog):
    with pytest.raises(SelfTestError, match=r"failed for dit_uncond \(1 of 12 comparisons\)"):
        Engine.load(settings(wrong))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    # Twice the expected velocity at one of three times.
    assert "FAILED: it is off by 1.2, wanted at most" in record.getMessage()


def test_it_is_not_run_unless_asked_for(wrong):
    Engine.load(settings(wrong, self_test=False)).pipeline.close()

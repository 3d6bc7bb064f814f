"""What is taken of the report of an earlier build."""

import json

import pytest

from export.build.cost import KEY, _found


def test_the_part_of_the_same_key(tmp_path):
    part = {"key": "k", "stages": {}}
    (tmp_path / "report.json").write_text(json.dumps({KEY: part}))
    assert _found(tmp_path / "report.json", "k") == part
    assert _found(tmp_path / "report.json", "other") is None


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"rounding": 1}', b"[" * 100_000])
def test_a_damaged_report_is_none(tmp_path, content):
    (tmp_path / "report.json").write_bytes(content)
    assert _found(tmp_path / "report.json", "k") is None

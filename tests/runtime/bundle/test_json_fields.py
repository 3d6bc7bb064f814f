"""JSON texts: a value, or an error that names where it stands."""

import pytest

from runtime.bundle.json_fields import DEEPEST, DecodeError, parse


def nested(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("text", ["1", "[]", '{"a": [{"b": null}]}', b'"\xc3\xbc"', nested(DEEPEST)])
def test_values(text):
    parse(text, "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.json is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ('{"a": 1', "a.json is not JSON: Expecting ',' delimiter"),
        (b'"\xff"', "a.json is not JSON: 'utf-8' codec can't decode byte 0xff"),
        ("9" * 5000, "a.json is not JSON: Exceeds the limit"),
        ("[" * 100_000, "a.json is nested too deeply, wanted at most 100 levels"),
        ('{"a":' * 100_000, "a.json is nested too deeply, wanted at most 100 levels"),
        (nested(DEEPEST + 1), "a.json is nested too deeply, wanted at most 100 levels"),
        ('{"a":' * 60 + nested(60) + "}" * 60, "a.json is nested too deeply, wanted at most 100 levels"),
    ],
    ids=["empty", "cut", "bytes", "digits", "brackets", "braces", "just", "mixed"],
)
def test_texts_without_one(text, message):
    with pytest.raises(DecodeError) as caught:
        parse(text, "a.json")
    assert str(caught.value).startswith(message)

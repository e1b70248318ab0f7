"""Strict JSON, regular files only, printable excerpts."""

import os

import pytest

from aecli.errors import message_of
from aecli.storage.strict_json import MAX_JSON_BYTES, MAX_JSON_VALUES, parse_json, read_json, regular_file, short_repr


def test_valid_json():
    text = '{"a": [1, -2.5, "\\u00e9\\ud83d\\ude00"], "b": {"a": null}, "c": 9223372036854775807}'
    assert parse_json(text) == {"a": [1, -2.5, "é😀"], "b": {"a": None}, "c": 2**63 - 1}
    assert parse_json(text.encode()) == parse_json(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "duplicate key 'c'"),
        ('{"a": 1, "\\u0061": 1}', "duplicate key 'a'"),
        ("NaN", "not a finite number"),
        ('{"a": [-Infinity]}', "not a finite number"),
        ("1e999", "not a finite number"),
        ("9223372036854775808", "integer too large"),
        ("1" + 5000 * "0", "integer too large"),
        (20 * "[" + 20 * "]", "nested too deeply"),
        (100_000 * "[" + 100_000 * "]", "nested too deeply"),
        (100_000 * '{"a":' + "0" + 100_000 * "}", "nested too deeply"),
        ("[" + MAX_JSON_VALUES * "0," + "0]", "values"),
        ("", "Expecting value"),
        ("[1] 2", "Extra data"),
    ],
    ids=lambda value: value[:20],
)
def test_ambiguous_or_oversized_json_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        parse_json(text)
    assert len(message_of(caught.value)) < 300


@pytest.mark.parametrize("content", [b"\xff", b'{"a": "\xed\xa0\x80"}', "[1]".encode("utf-16")])
def test_json_in_bytes_is_utf_8(content):
    with pytest.raises(ValueError):
        parse_json(content)


def test_a_file_larger_than_any_json_is_not_read(tmp_path):
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match="larger than the limit"):
        read_json(tmp_path / "large.json")


def test_only_regular_files_are_opened(tmp_path):
    with pytest.raises(OSError, match="not a regular file|Is a directory"), regular_file(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), regular_file(tmp_path / "absent"):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs device files")
def test_a_device_is_refused(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="not a regular file"), regular_file(tmp_path / "link"):
        pass


def test_values_of_a_file_are_shown_short_and_printable():
    assert short_repr("vae") == "'vae'" and short_repr(3) == "3"
    for value in ("\x1b[31m\n\ud800\u202e", 10**6 * "x", [[[[[[[["deep"]]]]]]]], {str(n): n for n in range(10**4)}):
        assert short_repr(value).isprintable() and len(short_repr(value)) < 400
    assert message_of(ValueError("two\nlines  and \x1b[2J")) == r"two lines and \x1b[2J"
    assert message_of(ValueError()) == "ValueError"
    assert len(message_of(ValueError(10**6 * "x"))) == 201

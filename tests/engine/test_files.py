"""Small files of a model folder are read within bounds, whatever stands in their place."""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import LONGEST_MESSAGE, ModelError, printable, shown, system_reason
from engine.files import find_folder, parse_object, read_object, read_text, temporary_folder


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "a folder, not a file"),
        (os.mkfifo, "a named pipe, not a file"),
        (endless, "a device, not a file"),
        (loop, "cannot be read"),
        (lambda path: path.symlink_to("gone"), "cannot be read"),
        (sparse, "3221225472 bytes"),
        (lambda path: path.write_bytes("{}".encode("utf-16")), "not UTF-8"),
        (lambda path: path.write_bytes(b'{"\xff": 1}'), r"not UTF-8 \(byte 2"),
        (pointer, "a Git LFS pointer"),
        (lambda path: None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_small_text_file_is_refused_at_once(
    make: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(ModelError, match=reason) as caught:
        read_object(path)
    assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes('\ufeff{"a": "ü"}'.encode())
    assert read_object(path) == {"a": "ü"}
    assert read_text(path) == '{"a": "ü"}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2,], "b": {"c": 1,\n},}', {"a": [1, 2], "b": {"c": 1}}),
        ('{"a": ",]", "b": "\\",}"}', {"a": ",]", "b": '",}'}),
        ('{"a": ",]", "b": "\\",}",}', {"a": ",]", "b": '",}'}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ('{"a": ' + "[" * 62 + "]" * 62 + "}", None),
    ],
)
def test_what_can_be_read_is_read(text: str, value: object) -> None:
    found = parse_object(text, "here")
    assert value is None or found == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("[]", "a JSON object is expected"),
        ('{"a": 1,, "b": 2}', "not valid JSON: .* line 1 column 9"),
        ('{"a": ' + "[" * 70 + "]" * 70 + "}", "nested more than 64 deep"),
        ('{"a":' * 100_000, "nested more than 64 deep"),
        ("9" * 10_000, "not valid JSON"),
        ('"' + '\\"' * 500_000, "not valid JSON"),  # quadratic for a careless pattern
        ("," * 500_000, "not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_names_the_file(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^here: {reason}"):
        parse_object(text, "here")


def test_a_key_that_is_there_twice_can_be_refused() -> None:
    with pytest.raises(ModelError, match="the key 'a' is there twice"):
        parse_object('{"b": {"a": 1, "a": 2}}', "here", unique=True)
    many = json.dumps({str(i): i for i in range(100_000)})[:-1] + ', "7": 7}'
    with pytest.raises(ModelError, match="the key '7' is there twice"):
        parse_object(many, "here", unique=True)


def test_messages_are_escaped_and_cut() -> None:
    error = ModelError("\x1b]0;title\x07 \u202e \ud800\nsecond line" + "x" * 10_000)
    assert str(error).startswith("\\x1b]0;title\\x07 \\u202e \\ud800\nsecond line")
    assert len(str(error)) < LONGEST_MESSAGE + 100
    assert printable(str(error)).startswith(str(error)[:1000])
    assert len(shown("x" * 10_000)) < 200 and len(shown([["x" * 99] * 99] * 99)) < 200
    assert len(shown(10**4000)) < 200 and "\x1b" not in shown({"\x1b": "\x1b"})


@pytest.mark.parametrize("name", ["\0", "a" * 5000, "~nobody-here/x", "loop", "file", "gone"])
def test_a_name_that_means_no_folder_is_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert find_folder(name, tmp_path) is None
    assert find_folder(".", tmp_path) == tmp_path.resolve()


def test_a_temporary_folder_ends_with_its_block() -> None:
    with temporary_folder("test") as folder:
        (folder / "file").write_text("a")
    assert not folder.exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_temporary_file_that_cannot_be_written_is_named(error: int) -> None:
    reason = os.strerror(error)
    with (
        pytest.raises(ModelError, match=f"config.json: {reason}.*TMPDIR"),
        temporary_folder("test") as folder,
    ):
        raise OSError(error, reason, str(folder / "config.json"))


def test_a_temporary_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    told = r"gone/understudy-test-.*No such file.*TMPDIR"
    with pytest.raises(ModelError, match=told), temporary_folder("test"):
        pass


def test_errors_that_a_library_raises_as_its_own_are_left_to_the_caller() -> None:
    with pytest.raises(OSError, match="no valid config"), temporary_folder("test"):
        raise OSError("no valid config")


def test_the_reason_of_an_error_has_no_path() -> None:
    with pytest.raises(OSError) as caught:
        Path("/proc/none").read_bytes()
    assert system_reason(caught.value) == "No such file or directory"
    assert [system_reason(error) for error in (OSError("why"), OSError())] == ["why", "OSError"]
    with pytest.raises(ModelError, match=r"\A/proc/none: cannot be read: No such file[a-z ]+\Z"):
        read_text(Path("/proc/none"))

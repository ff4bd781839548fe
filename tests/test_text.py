"""From text to token numbers and back."""

import gzip
import tracemalloc
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numba_rnn.text import Vocabulary, builtin_text, read_text, tokens


def test_words_are_numbered_by_first_appearance_and_lines_end_with_eos():
    vocabulary = Vocabulary.of("the cat\n the <unk> dog \n", "word")
    assert vocabulary.members == ["the", "cat", "<eos>", "<unk>", "dog"]
    assert vocabulary.encode("dog cat\nbird").tolist() == [4, 1, 2, 3]
    assert vocabulary.decode(np.array([0, 1, 2, 0, 4])) == "the cat\nthe dog"


@given(st.text(min_size=1))
def test_characters_round_trip(text):
    vocabulary = Vocabulary.of(text, "char")
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.encode(text).max() < len(vocabulary)


def test_rare_tokens_count_as_unknown():
    vocabulary = Vocabulary.of("a a b c c", "word", min_count=2)
    assert vocabulary.members == ["a", "c", "<unk>"]
    assert vocabulary.encode("a b c").tolist() == [0, 2, 1]


def test_the_built_in_text_is_english_of_some_length():
    text = builtin_text()
    assert len(text) > 300_000
    assert tokens(text, "word").count("the") > 1000
    assert all(any(c.isalpha() for c in line) for line in text.splitlines() if line.strip())


def test_byte_order_marks_and_carriage_returns_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(tmp_path / "a.txt") == "one\ntwo\n"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_a_newline_however_they_end_in_the_file(tmp_path, end):
    (tmp_path / "a.txt").write_bytes(b"one" + end + b"two" + end + end)
    assert read_text(tmp_path / "a.txt") == "one\ntwo\n\n"


WIDE = "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("text", ["plain English\n", "그는 집에 갔다.\n", "a\n", "größe und 蛇\n"])
def test_text_in_units_of_two_or_four_bytes_is_refused_by_name(tmp_path, encoding, text):
    data = text.encode(encoding)
    for name, content in (("a.txt", data), ("a.txt.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: expected UTF-8 .*got {encoding.upper()}"):
            read_text(tmp_path / name)


def test_text_with_a_stray_zero_is_text(tmp_path):
    text = "the last line before the power failed\n" * 3 + "\0\0"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    "data",
    [b"name\0value\0\n" * 50, b"a.txt\0bc.txt\0" * 9, "größe\0\0蛇\0".encode() * 20, b"ab\0\0" * 9],
)
def test_text_with_many_zeros_is_text(tmp_path, data):
    """Records, or names as ``find -print0`` has them: what is no UTF-16 is read as UTF-8."""
    (tmp_path / "a.txt").write_bytes(data)
    assert read_text(tmp_path / "a.txt") == data.decode()


HANGUL = "나는 학교에 갔다, café\n"  # syllables of two and of three letters


def test_parts_of_characters_are_composed(tmp_path):
    parts = unicodedata.normalize("NFD", HANGUL)
    assert len(parts) > len(HANGUL)
    (tmp_path / "a.txt").write_text(parts, encoding="utf-8", newline="")
    assert read_text(tmp_path / "a.txt") == HANGUL


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_prompts_are_read_in_the_form_that_the_vocabulary_knows(level, form):
    known = unicodedata.normalize(form, HANGUL)
    vocabulary = Vocabulary.of(known, level)
    for typed in ("NFC", "NFD"):
        assert vocabulary.normal(unicodedata.normalize(typed, HANGUL)) == known


def test_letters_that_are_new_to_the_vocabulary_stay_whole():
    vocabulary = Vocabulary.of("plain English, as in aeo", "char")
    for text in ("éáó", "é", "여우", "ế"):
        assert vocabulary.normal(unicodedata.normalize("NFD", text)) == text


def test_tokens_that_are_not_members_are_named_once():
    assert Vocabulary.of("나는 집", "char").unseen("나비는 나비 x") == ["비", "x"]
    assert Vocabulary.of("나는 집", "word").unseen("나비는 나는 집\n") == ["나비는", "<eos>"]
    assert Vocabulary.of("나는 집", "word").unseen("") == []


def test_empty_lines_of_words_come_back():
    vocabulary = Vocabulary.of("a\n\nb\n", "word")
    assert vocabulary.decode(vocabulary.encode("a\n\nb\n")) == "a\n\nb\n"


def test_files_plain_and_gzip(tmp_path):
    (tmp_path / "a.txt").write_text("größe\n", encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("größe\n".encode()))
    assert read_text(tmp_path / "a.txt") == read_text(tmp_path / "a.txt.gz") == "größe\n"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("latin.txt", "größe".encode("latin-1"), "expected UTF-8"),
        ("empty.txt", b" \n", "expected some text"),
        ("bad.gz", b"not gzip", "plain or gzip"),
        ("broken.gz", gzip.compress(b"text" * 100, mtime=0)[:10] + b"\xff" * 20, "plain or gzip"),
        ("short.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], "plain or gzip"),
    ],
)
def test_files_that_are_no_text_are_refused_by_name(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.*{says}"):
        read_text(tmp_path / name)


@pytest.mark.parametrize(("level", "unknown"), [("char", "\ufffd"), ("word", "<unk>")])
def test_a_vocabulary_of_unknown_tokens_alone_is_refused(level, unknown):
    text = "a b a"
    assert len(Vocabulary.of(text, level, min_count=2)) > 1
    says = rf"min_count: expected a {level} .* at least 3 times in the text, got at most 2"
    with pytest.raises(ValueError, match=says):
        Vocabulary.of(text, level, min_count=3)
    with pytest.raises(ValueError, match=r"min_count: expected .* got only the unknown"):
        Vocabulary.of(unknown, level)


def test_a_gzip_file_that_was_made_to_fill_the_memory_is_refused(tmp_path):
    path, bomb = tmp_path / "a.txt.gz", gzip.compress(b"a" * (1 << 20))
    path.write_bytes(bomb * 200)  # members of one file: 200 MiB of 200 kB
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"a\.txt\.gz: expected a file that unpacks to at most 100"
    ):
        read_text(path)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    path.write_bytes(gzip.compress(b"all work and no play\n" * 500_000))  # small as a whole
    assert len(read_text(path)) == 10_500_000


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        (np.array([-1, 1]), ValueError, "from 0 to 3, got -1 at 0"),
        ([0, 4], ValueError, "from 0 to 3, got 4 at 1"),
        (np.array([1, 1.9]), TypeError, r"whole numbers, got .*1\.0.* at 0"),
        ([True], TypeError, "whole numbers, got True at 0"),
        (np.array([0, 1], bool), TypeError, "whole numbers, got .*False.* at 0"),
        (["1"], TypeError, "whole numbers, got '1' at 0"),
        ("12", TypeError, "whole numbers, got '1' at 0"),
        ([0, None], TypeError, "whole numbers, got None at 1"),
        ([np.array(1.5)], TypeError, "whole numbers, got .*1.5.* at 0"),
        (np.array([[0, 1]]), TypeError, r"whole numbers \(L,\), got \(1, 2\)"),
        (np.array(1), TypeError, r"whole numbers \(L,\), got \(\)"),
        (3, TypeError, r"whole numbers \(L,\), got 3"),
    ],
    ids=str,
)
def test_what_is_no_token_number_is_refused_by_name(numbers, error, says):
    vocabulary = Vocabulary.of("abc", "char")
    with pytest.raises(error, match=f"numbers: expected .*{says}"):
        vocabulary.decode(numbers)


def test_token_numbers_of_any_kind_are_decoded():
    vocabulary = Vocabulary.of("abc", "char")
    for numbers in ([1, 0], (1, 0), range(1, -1, -1), np.array([1, 0], np.uint8), iter([1, 0])):
        assert vocabulary.decode(numbers) == "ba"
    for nothing in ([], np.array([]), np.zeros(0, int)):
        assert vocabulary.decode(nothing) == ""


@pytest.mark.parametrize("level", ["char", "word"])
@pytest.mark.parametrize("text", [b"abc", ["a", "b"], None, 3], ids=str)
def test_what_is_no_text_is_refused_by_name(text, level):
    vocabulary = Vocabulary.of("a b", level)
    for call in (lambda t: Vocabulary.of(t, level), vocabulary.encode, vocabulary.unseen,
                 vocabulary.normal):  # fmt: skip
        with pytest.raises(TypeError, match=f"text: expected text, .*got {type(text).__name__}"):
            call(text)
    with pytest.raises(TypeError, match="members: expected text, got 1"):
        Vocabulary(["a", 1], level)

"""File names in exports: whatever global keys and paths hold, names are safe, unique, and the same every time."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.exports.file_names import NameDigests, PictureNames, class_words, stem_of


def names_of(rows: list[tuple[str, str]], **options: bool) -> tuple[list[str], list[str]]:
    """(paths, files) of pictures with these global keys and `row_data`, in their order."""
    names = PictureNames([NameDigests.of(rows[:1]), NameDigests.of(rows[1:])])
    pictures = [DataRow("id", key, "image", row_data) for key, row_data in rows]
    return [names.path_of(row) for row in pictures], [names.file_of(row, **options) for row in pictures]


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def assert_safe(name: str) -> None:
    assert name.isprintable()
    assert not set(name) & set('\\/:*?"<>|')
    assert len(name.encode()) <= 200
    assert name not in ("", ".", "..")
    assert not name.startswith((".", "-", " "))
    assert not name.endswith((".", " "))
    assert name.partition(".")[0].upper() not in ("CON", "NUL", "COM1")


KEYS = st.one_of(
    st.sampled_from(
        [
            "..",
            "../../etc/passwd",
            "a/b.jpg",
            "A/b.jpg",
            "a_b.jpg",
            "a\\b.jpg",
            "/abs.jpg",
            "x.jpg",
            "X.JPG",
            "x.png",
            "🐱.jpg",
            "e\u0301.jpg",
            "\u00e9.jpg",
            "CON",
            "nul.txt",
            "a\nb.jpg",
            "a\0b.jpg",
            " .jpg",
            "-rf",
            "k" * 300,
            "x-0123456789abcdef.jpg",
            "a b.jpg",
            "https://host/x.jpg?y=1",
            "https://[::1/x.jpg",
            "https://host/%00%FF/..%2Fx.jpg",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, KEYS), unique_by=lambda row: row[0], min_size=1, max_size=12))
def test_names_are_safe_and_unique_for_all_keys_and_paths(rows):
    paths, files = names_of(rows)
    assert max(Counter(map(folded, paths)).values()) == 1
    assert max(Counter(folded(stem_of(name)) for name in files).values()) == 1
    for name in files:
        assert_safe(name)
    for path in paths:
        for part in path.split("/"):
            assert_safe(part)
    backwards = names_of(rows[::-1])
    assert ([*reversed(backwards[0])], [*reversed(backwards[1])]) == (paths, files)


def test_a_picture_keeps_the_name_of_its_file():
    rows = [
        ("k1", "https://host/folder/Caf%C3%A9%20crème.JPG?token=1"),
        ("k2", "/data/100%25.jpg"),
        ("k3", "/data/ねこ🐱.jpg"),
    ]
    paths, files = names_of(rows)
    assert paths == files == ["Café crème.JPG", "100%25.jpg", "ねこ🐱.jpg"]


def test_pictures_of_one_name_are_called_by_their_keys():
    rows = [(f"{c}/0001.jpg", f"/data/{c}/0001.jpg") for c in "ab"]
    paths, files = names_of(rows)
    assert paths == ["a/0001.jpg", "b/0001.jpg"]
    assert [name[:5] + name[21:] for name in files] == ["0001-.jpg", "0001-.jpg"]


def test_a_label_file_stands_for_one_picture_though_two_differ_in_their_extension():
    rows = [(name, f"/data/{name}") for name in ("a.jpg", "a.png")]
    paths, files = names_of(rows)
    assert paths == ["a.jpg", "a.png"]
    assert [Path(name).suffix for name in files] == [".jpg", ".png"]
    assert len({stem_of(name) for name in files}) == 2


def test_a_name_depends_on_its_key_alone_where_the_key_is_no_name():
    long = ("k" * 300, "https://host/")
    alone, _ = names_of([long])
    among, _ = names_of([("a", "/a.jpg"), long])
    assert alone[0] == among[1]
    assert len(alone[0]) < 100


def test_names_for_lists_that_separate_by_spaces_have_none():
    rows = [("k", "/data/a b.jpg")]
    assert names_of(rows)[1] == ["a b.jpg"]
    (name,) = names_of(rows, one_word=True)[1]
    assert name.startswith("k-")
    assert name.endswith(".jpg")


def test_classes_become_words_that_differ():
    words = class_words(["cat", "Person", "coffee cup", "coffee_cup", "DOG", "dog", "../x", "", "con"])
    assert (words["cat"], words["Person"], words["coffee_cup"]) == ("cat", "Person", "coffee_cup")
    assert len({word.casefold() for word in words.values()}) == len(words)
    for word in words.values():
        assert_safe(word)
        assert not any(map(str.isspace, word))


@pytest.mark.parametrize(("name", "stem"), [("a.jpg", "a"), ("a.b.jpg", "a.b"), ("a", "a"), ("a.tar.gz", "a.tar")])
def test_a_stem_ends_at_the_last_dot(name, stem):
    assert stem_of(name) == stem

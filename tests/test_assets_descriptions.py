import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.descriptions import TABLE_CHARS, cell, markdown_table, safe_markdown

PICTURE = re.compile(r"!\[")


@pytest.mark.parametrize(
    "text",
    [
        "![spy](https://evil.example/p.png)",
        "![spy][ref]\n\n[ref]: https://evil.example/p.png",
        "!![spy](https://evil.example/p.png)",
        '<img src="https://evil.example/p.png">',
        "<IMG SRC=//evil.example/p.png onerror=alert(1)>",
        "</p><iframe src='https://evil.example'></iframe>",
        "<!-- x --><script>fetch('https://evil.example')</script>",
    ],
)
def test_a_readme_loads_nothing_from_a_third_party(text: str) -> None:
    shown = safe_markdown(text)
    assert not PICTURE.search(shown)
    assert not re.search(r"<[A-Za-z/!?]", shown)


def test_a_readmes_own_words_stay() -> None:
    text = "### Limits\n- faces < 20 px, **not** children\n- [paper](https://example.org/p.pdf)"
    assert safe_markdown(text) == text


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_no_text_makes_a_picture_or_a_tag(text: str) -> None:
    shown = safe_markdown(text)
    assert "![" not in shown
    assert not re.search(r"<[A-Za-z/!?]", shown)


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_a_cell_is_one_line_without_live_markdown(text: str) -> None:
    shown = cell(text)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)(\\\\)*[|`*\[\]!]", shown)
    assert "<" not in shown


def test_a_long_table_says_how_much_is_left_out() -> None:
    rows = [(f"row {at}", "code", "m" * 90) for at in range(100)]
    table = markdown_table(("data row", "code", "message"), rows, total=5000)
    shown = table.count("\n| row")
    assert len(table) < TABLE_CHARS + 300
    assert table.endswith(f"and {5000 - shown:,} more")


def test_a_table_that_fits_leaves_nothing_out() -> None:
    assert markdown_table(("a", "b"), [(1, "x|y")], total=1) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"

"""Pages: whole, self-contained, and nothing that goes in becomes markup."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_pipeline.html_page import Html, bullets, code, page, picture, section, table


def test_a_page_allows_no_script_and_no_fetching() -> None:
    made = page("Title", "text")
    assert made.startswith("<!doctype html>")
    assert "default-src 'none'; img-src data:" in made
    assert "<p>text</p>" in made


@given(st.text())
def test_no_text_becomes_markup(text: str) -> None:
    made = "".join(
        part.markup
        for part in (
            section(text, text),
            table([text], [[text]]),
            bullets([text]),
            code(text),
            picture(b"x", "image/png", text),
        )
    )
    plain = section("", "").markup + table([""], [[""]]).markup + bullets([""]).markup + code("").markup
    assert made.count("<") == (plain + picture(b"x", "image/png", "").markup).count("<")
    assert made.count('"') == (plain + picture(b"x", "image/png", "").markup).count('"')


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.5, "<td class=number>0.5000</td>"), (3, "<td class=number>3</td>"), (None, "<td>-</td>"), ("a", "<td>a</td>")],
)
def test_cells_show_their_kind(value: object, shown: str) -> None:
    assert shown in table(["h"], [[value]]).markup


def test_markup_of_this_module_is_kept() -> None:
    assert "<b>x</b>" in page("t", Html("<b>x</b>"))


def test_a_character_that_a_page_may_not_hold_is_shown_as_its_code() -> None:
    assert "\\u0000" in page("t", "a\x00b")
    assert page("t", "\ud800").encode()

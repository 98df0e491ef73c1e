"""The readable text of HTML: what a person would see, whatever the markup is like."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_pipeline.rows.html_text import readable_text

PAGE = """<!doctype html>
<html><head><title>Not on the page</title><style>p { color: red }</style>
<script>if (a < b) document.write("</p>")</script></head>
<body>
  <h1>Tom &amp; Bob</h1>
  <p>work   at <b>I</b>BM,<br>in&nbsp;Caf&eacute;&#32;&#x1F600; 1 < 2.</p>
  <!-- <p>hidden</p> --><template><p>never</p></template>
  <p hidden>no</p><div style="color:red; DISPLAY : none">no <div>nor this</div></div>
  <table><tr><th>name</th><th>age</th></tr><tr><td>Tom</td><td>30</td></tr></table>
  <ul><li>one<li>two</ul><pre>  kept
    as it is</pre>
</body></html>"""


def test_a_page_is_the_lines_that_a_person_sees() -> None:
    assert readable_text(PAGE).split("\n") == [
        "Tom & Bob",
        "work at IBM,",
        "in\u00a0Café \U0001f600 1 < 2.",
        "name\tage",
        "Tom\t30",
        "one",
        "two",
        "  kept",
        "    as it is",
    ]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("", ""),
        ("plain text", "plain text"),
        ("a<b", "a"),
        ("a < b > c", "a < b > c"),
        ("a<!-->b", "ab"),
        ("a<!-- b", "a"),
        ("a<? b ?>c</>d", "acd"),
        ("a</3>b", "ab"),
        ("<a title=it's href='x>y'>link</a>", "link"),
        ('<a title="a>b" b=c>link', "link"),
        ("<p hidden>no<p>yes", "yes"),
        ("<div><p hidden>no</div>yes", "yes"),
        ("<li hidden>no<ul><li>nor</li></ul></li>yes", "yes"),
        ("<br hidden>yes<input hidden>too", "yestoo"),
        ("<div hidden>a<b>b</b></div>c", "c"),
        ("<p hidden>a<p hidden>b<p>c", "c"),
        ("<SCRIPT>x</script >y", "y"),
        ("<script>x</scripty></script>y", "y"),
        ("<style>x", ""),
        ("<b>a</b> <i>b</i>", "a b"),
        ("a<br><br>b", "a\n\nb"),
        ("a<div></div><div>b</div>", "a\nb"),
        ("a\0b&#0;&#xD800;", "a\ufffdb\ufffd\ufffd"),
        ("&lt;p&gt;&amp;lt;", "<p>&lt;"),
        ("<textarea> a\n b</textarea>", " a\n b"),
    ],
)
def test_markup_of_every_kind(source: str, text: str) -> None:
    assert readable_text(source) == text


@given(
    st.lists(
        st.sampled_from(["<", ">", "/", "!", "--", "'", '"', "=", "p", "div", " ", "hidden", "script", "&", "x"]),
        max_size=40,
    )
)
def test_no_source_breaks_it_and_nothing_is_made_up(pieces: list[str]) -> None:
    source = "".join(pieces)
    text = readable_text(source)
    assert len(text) <= len(source)
    assert set(text) <= set(source) | {"\n", "\t", " "}


@given(st.text(st.characters(exclude_characters="<&\0\r", exclude_categories=["Cs"]), max_size=60))
def test_a_text_without_markup_is_itself_but_for_its_blanks(text: str) -> None:
    words = [word for line in text.split() for word in [line]]
    assert readable_text(text).split() == words


@pytest.mark.parametrize(
    "hostile",
    [
        "<a ",
        "<!",
        "<!--",
        "</",
        "<div>",
        "<div hidden>",
        "<b></i>",
        "<script>",
        "<a b='",
        "x=",
        "&",
        "<br>",
        "<p hidden>",
    ],
)
def test_time_grows_with_the_length_and_no_faster(hostile: str) -> None:
    """Other parsers take minutes for 60 KB of these. A ratio within one run: eight times the length, and generous."""

    def seconds(count: int) -> float:
        source = "<a " * (hostile == "x=") + hostile * count
        began = time.perf_counter()
        readable_text(source)
        return time.perf_counter() - began

    short = min(seconds(4_000) for _ in range(3))
    assert min(seconds(32_000) for _ in range(3)) < 32 * short + 0.05

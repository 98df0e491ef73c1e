"""A preview's parts: which rows it takes, what it foresees, how texts are highlighted."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_pipeline.config.money import Money
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.preview.forecast import Seen, duration, forecast, wilson
from foundry_pipeline.preview.gallery import Span, highlighted
from foundry_pipeline.preview.sample import MOST_STRATA, Sampled, stratified, stratum_of


def rows_of(*kinds: tuple[str, int]) -> list[tuple[str, DataRow]]:
    return [
        (f"{n % 3:05}", DataRow("id", f"{kind}-{n}", "text", "x", metadata={"kind": kind}))
        for kind, count in kinds
        for n in range(count)
    ]


def kinds(sample: list[Sampled]) -> list[str]:
    return [sampled.stratum for sampled in sample]


def test_a_rare_kind_is_in_the_sample() -> None:
    sample = stratified(rows_of(("common", 1000), ("rare", 2)), 4, 0, stratum_of("kind"))
    assert sorted(kinds(sample)) == ["kind=common", "kind=common", "kind=rare", "kind=rare"]


def test_the_frequent_kinds_come_first_where_there_are_too_many() -> None:
    sample = stratified(rows_of(("rare", 1), ("common", 9), ("some", 4)), 2, 0, stratum_of("kind"))
    assert kinds(sample) == ["kind=common", "kind=some"]


@given(st.integers(0, 30), st.integers(0, 5), st.permutations(rows_of(("a", 12), ("b", 3))))
def test_the_seed_alone_decides_whatever_the_order(count: int, seed: int, rows: list[tuple[str, DataRow]]) -> None:
    sample = stratified(rows, count, seed, stratum_of("kind"))
    assert sample == stratified(rows_of(("a", 12), ("b", 3)), count, seed, stratum_of("kind"))
    assert len(sample) == min(count, 15)
    assert len({sampled.row.global_key for sampled in sample}) == len(sample)


def test_another_seed_takes_other_rows() -> None:
    rows = rows_of(("a", 1000))
    assert stratified(rows, 5, 0) != stratified(rows, 5, 1)


def test_a_column_with_a_value_for_every_row_does_not_make_as_many_strata() -> None:
    rows = [("0", DataRow("id", str(n), "text", "x", metadata={"k": str(n)})) for n in range(2 * MOST_STRATA)]
    assert "other" in kinds(stratified(rows, 2 * MOST_STRATA, 0, stratum_of("k")))


def test_pictures_are_told_apart_by_type_shape_and_size() -> None:
    kind_of = stratum_of(None)
    tall = DataRow("id", "a", "image", "", mime_type="image/png", width=100, height=200)
    wide = DataRow("id", "b", "image", "", mime_type="image/png", width=200, height=100)
    huge = DataRow("id", "c", "image", "", mime_type="image/png", width=2000, height=1000)
    jpeg = DataRow("id", "d", "image", "", mime_type="image/jpeg", width=200, height=100)
    assert len({kind_of(row) for row in (tall, wide, huge, jpeg)}) == 4
    assert kind_of(wide) == kind_of(DataRow("id", "e", "image", "", mime_type="image/png", width=201, height=100))


LIMITS = {"requests_per_second": 10.0, "max_concurrency": 4}


def test_the_rate_or_the_latency_limits_the_time() -> None:
    quick = forecast(Seen(10, 0, 0, 10, 0.1), rows=1000, rows_answered=0, cost_per_call=None, **LIMITS)
    assert (quick.calls, quick.seconds, quick.limited_by) == (1000, 100.0, "rate")
    slow = forecast(Seen(10, 0, 0, 10, 4.0), rows=1000, rows_answered=0, cost_per_call=None, **LIMITS)
    assert (slow.seconds, slow.limited_by) == (1000.0, "latency")


def test_answered_rows_cost_nothing_and_retries_do() -> None:
    foreseen = forecast(
        Seen(10, 1, 0, 20, 0.1), rows=1000, rows_answered=500, cost_per_call=Money(Decimal("0.5"), "USD"), **LIMITS
    )
    assert (foreseen.calls, str(foreseen.cost)) == (1000, "500 USD")


def test_failures_are_foreseen_as_an_interval_that_widens_with_ignorance() -> None:
    few = forecast(Seen(10, 1, 0, 10, 0.1), rows=1000, rows_answered=0, cost_per_call=None, **LIMITS)
    many = forecast(Seen(1000, 100, 0, 1000, 0.1), rows=1000, rows_answered=0, cost_per_call=None, **LIMITS)
    assert few.failed_low <= many.failed_low <= 100 <= many.failed_high <= few.failed_high


@pytest.mark.parametrize(("hits", "of", "low", "high"), [(0, 0, 0, 1), (0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634)])
def test_the_interval_is_wilsons(hits: int, of: int, low: float, high: float) -> None:
    assert wilson(hits, of) == pytest.approx((low, high), abs=1e-4)


def test_durations_are_in_words() -> None:
    assert [duration(s) for s in (5, 90, 5400, 200_000)] == ["5 s", "2 min", "1.5 h", "2.3 days"]


def plain(markup: str) -> str:
    return re.sub(r"<sub>.*?</sub>|<[^>]*>", "", markup)


@given(
    st.text(alphabet="ab<&\"'é😀", max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=5)
)
def test_highlighting_keeps_the_text_and_escapes_it(text: str, places: list[tuple[int, int]]) -> None:
    spans = [Span(min(p), max(p), "person", "person") for p in places]
    shown = plain(highlighted(text, spans))
    for code, char in (("&lt;", "<"), ("&quot;", '"'), ("&#x27;", "'"), ("&amp;", "&")):
        shown = shown.replace(code, char)
    assert shown == text


def test_an_entity_is_marked_from_start_to_end_with_its_label_at_the_end() -> None:
    markup = highlighted("Ann and Bob", [Span(8, 11, "person", "person 0.90")])
    assert re.fullmatch(r'Ann and <mark style="[^"]*" title="person 0.90">Bob<sub>person 0.90</sub></mark>', markup)


def test_where_entities_overlap_each_stretch_names_all_it_lies_in() -> None:
    markup = highlighted("abcdef", [Span(0, 4, "x", "x"), Span(2, 6, "y", "y")])
    assert re.findall(r'title="([^"]*)">(\w+)', markup) == [("x", "ab"), ("x, y", "cd"), ("y", "ef")]

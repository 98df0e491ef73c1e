"""docs/reliability.md and the tests name the same faults: none is promised untested, none tested unsaid."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs/reliability.md").read_text()
LAST = 130
"""The page's faults are numbered from 1 to this."""
FAULTS = [f"F{number:03}" for number in range(1, LAST + 1)]
CELLS = 6
"""ID, fault, what happens, kept, retried, what the person sees."""


def rows() -> list[list[str]]:
    lines = re.findall(r"^\| (F\d{3} \|.*)\|$", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def numbers_in_test_names() -> set[str]:
    return {
        number
        for path in HERE.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for number in re.findall(r"F\d{3}", node.name)
    }


def test_every_fault_has_one_line_on_the_page() -> None:
    times = Counter(cells[0] for cells in rows())
    assert {fault: times[fault] for fault in FAULTS if times[fault] != 1} == {}
    assert [fault for fault, count in times.items() if count > 1] == []


def test_the_page_says_for_each_fault_what_happens_and_what_a_person_sees() -> None:
    for number, *cells in rows():
        if number in FAULTS:
            fault, happens, _, retried, seen = cells
            assert len(cells) == CELLS - 1, number
            assert all((fault, happens, retried, seen)), number


def test_every_fault_has_a_test_that_carries_its_number() -> None:
    assert set(FAULTS) - numbers_in_test_names() == set()


def test_no_test_carries_the_number_of_a_fault_that_the_page_does_not_have() -> None:
    beyond = {number for number in numbers_in_test_names() if int(number[1:]) > 130}
    assert beyond == set()
    named = {number for number in numbers_in_test_names() if number <= FAULTS[-1]}
    assert named <= {cells[0] for cells in rows()}

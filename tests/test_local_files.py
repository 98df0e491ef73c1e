from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from foundry_pipeline.errors import RowUnavailable
from foundry_pipeline.rows.local_files import LocalFiles


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "pictures").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.txt").write_text("secret")
    (tmp_path / "home" / "pictures" / "a.txt").write_text("hello")
    return tmp_path / "home"


def refusal(files: LocalFiles, path: Path | str, max_bytes: int = 1000) -> str:
    with pytest.raises(RowUnavailable) as caught:
        files.read(str(path), max_bytes)
    return caught.value.code


def test_a_file_below_the_home_is_read(home: Path) -> None:
    assert LocalFiles(home).read(f"{home}/pictures/a.txt", 5) == b"hello"


def test_a_file_outside_is_read_only_where_its_folder_is_allowed(home: Path) -> None:
    outside = home.parent / "outside" / "a.txt"
    assert refusal(LocalFiles(home), outside) == "row_forbidden"
    assert LocalFiles(home, [outside.parent]).read(str(outside), 100) == b"secret"


def test_a_folder_whose_name_only_begins_like_the_home_is_outside(home: Path) -> None:
    twin = home.with_name("home2")
    twin.mkdir()
    (twin / "a.txt").write_text("x")
    assert refusal(LocalFiles(home), twin / "a.txt") == "row_forbidden"


def test_F090_links_below_the_home_are_refused_wherever_they_lead(home: Path) -> None:
    (home / "link.txt").symlink_to(home / "pictures" / "a.txt")
    (home / "folder").symlink_to(home.parent / "outside")
    (home / "dead").symlink_to(home / "nothing")
    files = LocalFiles(home)
    assert refusal(files, home / "link.txt") == "row_forbidden"
    assert refusal(files, home / "folder" / "a.txt") == "row_forbidden"
    assert refusal(files, home / "dead") == "row_unreadable"
    with pytest.raises(RowUnavailable, match=r"symbolic link.*allow_folders"):
        files.check_folder(str(home / "folder"))


def test_a_root_may_be_reached_through_a_link(home: Path) -> None:
    linked = home.parent / "linked"
    linked.symlink_to(home)
    files = LocalFiles(linked)
    assert files.read(f"{linked}/pictures/a.txt", 100) == b"hello"
    assert files.read(f"{home}/pictures/a.txt", 100) == b"hello"
    (home / "data").symlink_to(home.parent / "outside")
    assert LocalFiles(home, [home / "data"]).read(f"{home}/data/a.txt", 100) == b"secret"


def test_F090_what_is_no_regular_file_never_blocks(home: Path) -> None:
    os.mkfifo(home / "fifo")
    (home / "empty").touch()
    (home / "locked").write_text("x")
    (home / "locked").chmod(0)
    files = LocalFiles(home, [Path("/dev")])
    unreadable = [
        home / "fifo",
        home / "empty",
        home / "pictures",
        home,
        "/dev/zero",
        home / ("x" * 300),
        f"{home}/a\0b",
    ]
    if os.geteuid() != 0:
        unreadable.append(home / "locked")
    assert [refusal(files, path) for path in unreadable] == ["row_unreadable"] * len(unreadable)


def test_a_missing_file_is_missing(home: Path) -> None:
    files = LocalFiles(home)
    assert refusal(files, home / "pictures" / "b.txt") == "row_missing"
    assert refusal(files, home / "pictures" / "a.txt" / "b.txt") == "row_missing"
    assert refusal(LocalFiles(home / "gone"), home / "gone" / "a.txt") == "row_missing"


def test_a_file_over_the_limit_is_not_read(home: Path) -> None:
    assert refusal(LocalFiles(home), home / "pictures" / "a.txt", 4) == "row_too_large"


def test_F091_a_file_that_keeps_changing_is_reported(home: Path) -> None:
    path = home / "pictures" / "a.txt"
    path.write_text("x")
    stop = threading.Event()

    def write() -> None:
        size = 0
        while not stop.is_set():
            size = size % 40 + 1
            path.write_bytes(b"x" * size * 50_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        codes: set[str] = set()
        for _ in range(20_000):
            if "row_changed" in codes:
                break
            try:
                assert set(LocalFiles(home).read(str(path), 10**8)) == {ord("x")}
            except RowUnavailable as err:
                codes.add(err.code)
    finally:
        stop.set()
        writer.join()
    assert codes <= {"row_changed", "row_unreadable"}
    assert "row_changed" in codes

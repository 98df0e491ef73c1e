"""Conversations from data row to table: roles, history, answers about messages, and conversations continued."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_pipeline.invoke import CallOptions
from tests.decoding import checklist, ontology, options, radio, text
from tests.fake_model import FakeModel, Reply, Request
from tests.media_bench import CHECKOUT, MediaBench, kill_at, turns_in

CHAT = ontology(radio("mood", *options("good", "bad")), checklist("topics", "price", "time"), text("reply"))


def said(message_id: str, speaker: str, content: str, name: str = "") -> dict[str, Any]:
    return {"messageId": message_id, "content": content, "user": {"userId": speaker, "name": name}}


def talk(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"type": "application/vnd.labelbox.conversational", "version": 1, "messages": list(messages)}


SALE = talk(
    said("m1", "bot", "Hello!"),
    said("m2", "ann", "What does it cost?"),
    said("m3", "ann", "And when is it here?"),
    said("m4", "bot", "Ten, tomorrow."),
    said("m5", "ann", "Fine."),
    said("m6", "bot", "Bye."),
)
ROLES = {"ann": "user", "*": "assistant"}


@pytest.fixture
def model() -> Iterator[FakeModel]:
    with FakeModel() as served:
        yield served


def bench_of(tmp_path: Path, model: FakeModel, *conversations: dict[str, Any], **run: Any) -> MediaBench:
    records = [{"row_data": each, "global_key": f"c{at}"} for at, each in enumerate(conversations)]
    bench = MediaBench(tmp_path, model.url, "conversational", records, ontology=CHAT)
    bench.runs(**run)
    return bench


def test_every_message_is_a_turn_in_order_and_the_first_speaker_the_user(model: FakeModel, tmp_path: Path) -> None:
    bench_of(tmp_path, model, SALE).call()
    assert turns_in(model.requests[0]) == [
        ("user", "Hello!"),
        ("assistant", "What does it cost?"),
        ("assistant", "And when is it here?"),
        ("user", "Ten, tomorrow."),
        ("assistant", "Fine."),
        ("user", "Bye."),
    ]


def with_a_name(message: dict[str, Any]) -> dict[str, Any]:
    speaker = message["user"]["userId"]
    return {**message, "user": {"userId": speaker, "name": f"{speaker.capitalize()}!"}}


@pytest.mark.parametrize("roles", [ROLES, {"ann": "user", "bot": "assistant"}, {"Ann!": "user", "*": "assistant"}])
def test_a_dataset_says_who_is_who_by_id_or_name(roles: dict[str, str], model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, talk(*map(with_a_name, SALE["messages"])))
    bench.data(roles=roles)
    bench.call()
    spoken = [role for role, _ in turns_in(model.requests[0])]
    assert spoken == ["assistant", "user", "user", "assistant", "user", "assistant"]


def test_turns_say_their_messages_where_the_manifest_asks_for_it(model: FakeModel, tmp_path: Path) -> None:
    """The document knows role and parts alone; a model that answers about messages needs their ids."""
    bench = bench_of(tmp_path, model, SALE)
    bench.call()
    assert all(turn.keys() == {"role", "parts"} for turn in model.requests[0].body["prompt"])
    bench.model(message_ids=True)
    assert bench.call().calls == 1
    assert [turn["message_id"] for turn in model.requests[1].body["prompt"]] == ["m1", "m2", "m3", "m4", "m5", "m6"]


def test_other_roles_are_another_call(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, SALE)
    bench.call()
    assert bench.call().calls == 0
    bench.data(roles=ROLES)
    assert bench.call().calls == 1


def test_a_speaker_without_a_role_is_not_sent_with_a_guess(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, talk(said("1", "ann", "Hi"), said("2", "stranger", "Ho")), SALE)
    bench.data(roles={"ann": "user", "bot": "assistant"})
    report = bench.call()
    assert (report.ok, report.not_sent, report.errors) == (1, 1, {"row_unknown_speaker": 1})
    assert "'stranger'" in bench.responses()[0]["message"]


def test_answers_may_be_about_single_messages(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply(
        {
            "mood": [
                {"answer": "good", "score": 0.9, "message_id": "m1"},
                {"answer": "bad", "message_id": "m2"},
                {"answer": "good", "message_id": "m99"},
                {"answer": "good"},
            ],
            "topics": [{"answer": "price", "message_id": "m2"}, {"answer": "time", "message_id": "m3"}, "price"],
            "reply": {"answer": "Short.", "message_id": "m4"},
        }
    )
    bench = bench_of(tmp_path, model, SALE)
    bench.go()
    chosen = [(c["feature"], c["answer"], c["message_id"], c["score"]) for c in bench.table("classifications")]
    assert chosen == [
        ("mood", "good", "m1", 0.9),
        ("mood", "bad", "m2", None),
        ("mood", "good", None, None),
        ("topics", "price", "m2", None),
        ("topics", "time", "m3", None),
        ("topics", "price", None, None),
    ]
    assert [(t["answer"], t["message_id"]) for t in bench.table("texts")] == [("Short.", "m4")]
    assert [(r["path"], r["reason"]) for r in bench.table("rejects")] == [("$.mood[2].message_id", "unknown_message")]


def test_a_list_of_answers_means_nothing_where_there_are_no_messages(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda _: Reply({"mood": [{"answer": "good", "message_id": "m1"}]})
    bench = MediaBench(tmp_path, model.url, "text", [{"row_data": "Hi there"}], ontology=CHAT)
    bench.go()
    assert [(r["path"], r["reason"]) for r in bench.table("rejects")] == [("$.mood", "wrong_type")]


def echo(request: Request) -> Reply:
    """Says how many turns it heard, and the last of them."""
    turns = turns_in(request)
    return Reply({"reply": f"{len(turns)}: {turns[-1][1]}"})


def test_the_last_message_of_a_user_is_answered_with_the_recorded_history(model: FakeModel, tmp_path: Path) -> None:
    model.answer = echo
    bench = bench_of(tmp_path, model, SALE, generate="last")
    bench.data(roles=ROLES)
    assert bench.go().calls == 1
    assert turns_in(model.requests[0])[-2:] == [("assistant", "Ten, tomorrow."), ("user", "Fine.")]
    assert [(t["answer"], t["message_id"]) for t in bench.table("texts")] == [("5: Fine.", "m5")]
    assert [(r["message_id"], r["outcome"]) for r in bench.responses()] == [("m5", "ok")]


def test_every_turn_is_answered_with_the_models_own_answers_as_history(model: FakeModel, tmp_path: Path) -> None:
    model.answer = echo
    bench = bench_of(tmp_path, model, SALE, generate="every")
    bench.data(roles=ROLES)
    assert bench.go().calls == 2
    first, second = map(turns_in, model.requests)
    assert first == [("assistant", "Hello!"), ("user", "What does it cost?"), ("user", "And when is it here?")]
    assert second == [*first, ("assistant", "3: And when is it here?"), ("user", "Fine.")]
    assert [(t["answer"], t["message_id"]) for t in bench.table("texts")] == [
        ("3: And when is it here?", "m3"),
        ("5: Fine.", "m5"),
    ]
    assert len({t["prediction_id"] for t in bench.table("texts")}) == 2
    again = bench.go()
    assert (again.calls, again.reused, again.ok) == (0, 2, 2)


def test_conversations_of_any_length_go_on_side_by_side(model: FakeModel, tmp_path: Path) -> None:
    model.answer = echo

    def of_length(turns: int) -> dict[str, Any]:
        pairs = ((said(f"u{n}", "ann", f"{turns}.{n}"), said(f"b{n}", "bot", "x")) for n in range(turns))
        return talk(*(message for pair in pairs for message in pair))

    bench = bench_of(tmp_path, model, *map(of_length, (1, 4, 2)), generate="every")
    report = bench.go()
    assert (report.calls, report.rows, report.ok) == (7, 7, 7)
    assert [(r["global_key"], r["message_id"]) for r in bench.responses()] == [
        ("c0", "u0"),
        *(("c1", f"u{n}") for n in range(4)),
        ("c2", "u0"),
        ("c2", "u1"),
    ]


def test_a_plain_string_is_an_answer_to_go_on_with(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda request: Reply(
        f"heard {len(turns_in(request))}".encode(), headers={"Content-Type": "text/plain"}
    )
    bench = bench_of(tmp_path, model, SALE, generate="every")
    bench.data(roles=ROLES)
    bench.go()
    assert [t["answer"] for t in bench.table("texts")] == ["heard 3", "heard 5"]


def test_a_turn_without_an_answer_ends_its_conversation_and_no_other(model: FakeModel, tmp_path: Path) -> None:
    longer = talk(*SALE["messages"], said("m7", "ann", "Ah, wait."))
    refused = talk(said("q1", "ann", "refuse me"), said("q2", "bot", "no"), said("q3", "ann", "why?"))
    silent = talk(said("s1", "ann", "be silent"), said("s2", "bot", ""), said("s3", "ann", "why?"))

    def answer(request: Request) -> Reply:
        last = turns_in(request)[-1][1]
        if last == "refuse me":
            return Reply({"error": "no"}, status=400)
        return Reply({"mood": "good"}) if last == "be silent" else echo(request)

    model.answer = answer
    bench = bench_of(tmp_path, model, longer, refused, silent, generate="every")
    bench.data(roles=ROLES)
    report = bench.go()
    outcomes = [(r["global_key"], r["message_id"], r["outcome"], r["error"]) for r in bench.responses()]
    assert outcomes == [
        ("c0", "m3", "ok", None),
        ("c0", "m5", "ok", None),
        ("c0", "m7", "ok", None),
        ("c1", "q1", "rejected_by_model", "http_400"),
        ("c1", "q3", "not_sent", "row_no_history"),
        ("c2", "s1", "ok", None),
        ("c2", "s3", "not_sent", "row_no_history"),
    ]
    assert (report.ok, report.rejected_by_model, report.not_sent) == (4, 1, 2)
    # Nothing is asked again that was answered, and what was never asked comes as soon as it can.
    model.answer = echo
    report = bench.go(CallOptions(retry="rejected"))
    assert (report.calls, report.ok) == (2, 6)
    assert [r["outcome"] for r in bench.responses()] == ["ok"] * 6 + ["not_sent"]


def test_another_answer_to_an_earlier_turn_makes_the_later_ones_new_calls(model: FakeModel, tmp_path: Path) -> None:
    model.answer = echo
    bench = bench_of(tmp_path, model, SALE, generate="every")
    bench.data(roles=ROLES)
    bench.go()
    model.answer = lambda request: Reply({"reply": "other"})
    report = bench.go(CallOptions(refresh=True))
    assert (report.calls, report.ok) == (2, 2)
    assert turns_in(model.requests[-1])[3] == ("assistant", "other")
    assert [t["answer"] for t in bench.table("texts")] == ["other", "other"]


def test_a_refresh_that_fails_keeps_the_whole_conversation_that_was_paid_for(model: FakeModel, tmp_path: Path) -> None:
    model.answer = echo
    others = [talk(said("1", "ann", f"Hello {at}")) for at in range(8)]
    bench = bench_of(tmp_path, model, SALE, *others, generate="every")
    bench.data(roles=ROLES)
    bench.model(max_attempts=1)
    bench.go()
    before = [(r["message_id"], r["reply"]) for r in bench.responses()]
    boom = Reply({"error": "boom"}, status=500)
    model.answer = lambda request: boom if "What does it cost?" in request.text else echo(request)
    report = bench.call(CallOptions(refresh=True))
    assert report.errors == {"http_500": 2}
    assert [(r["message_id"], r["reply"]) for r in bench.responses()] == before


def test_a_slice_that_is_not_committed_names_its_failed_conversations_in_their_order(
    model: FakeModel, tmp_path: Path
) -> None:
    boom = Reply({"error": "boom"}, status=500)
    model.answer = lambda request: boom if turns_in(request)[-1][1] in ("0.2", "1.0") else echo(request)
    bench = bench_of(tmp_path, model, *long_talks(3, 3), generate="every", max_failed_share=0.0)
    bench.model(max_attempts=1)
    report = bench.call()
    assert "2 of 9 rows failed" in str(report.failure)
    named = [(row.global_key, row.outcome, row.code) for row in report.unanswered]
    assert named[:2] == [("c0", "failed", "http_500"), ("c1", "failed", "http_500")]
    assert named[2:] == [("c1", "not_sent", "row_no_history")] * 2
    assert not bench.responses()


_CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, {checkout!r})
from tests.test_calls_conversations import long_talks, every_turn
print(every_turn(Path({root!r}), {url!r}).call().failure)
"""


def long_talks(count: int = 12, turns: int = 5) -> list[dict[str, Any]]:
    pairs = [
        [(said(f"u{n}", "ann", f"{at}.{n}"), said(f"b{n}", "bot", "x")) for n in range(turns)] for at in range(count)
    ]
    return [talk(*(message for pair in talks for message in pair)) for talks in pairs]


def every_turn(root: Path, url: str) -> MediaBench:
    bench = MediaBench(root, url, "conversational", [{"row_data": each} for each in long_talks()], ontology=CHAT)
    bench.runs(generate="every")
    bench.model(max_concurrency=4, requests_per_second=200.0)
    return bench


def test_kill_9_in_the_middle_of_conversations_buys_no_turn_twice(model: FakeModel, tmp_path: Path) -> None:
    model.answer = lambda request: Reply(echo(request).body, delay_s=0.03)
    child = _CHILD.format(checkout=str(CHECKOUT), root=str(tmp_path), url=model.url)
    kill_at(model, child, (17, 40))
    report = every_turn(tmp_path, model.url).go()
    assert (report.rows, report.ok) == (60, 60)
    asked = Counter(request.key for request in model.requests)
    assert len(asked) == 60
    assert sum(asked.values()) - 60 <= 2 * 4


def test_a_conversation_without_a_user_is_not_sent(model: FakeModel, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, model, talk(said("1", "bot", "Hello?")), talk(), generate="every")
    bench.data(roles=ROLES)
    report = bench.call()
    assert (report.not_sent, report.calls) == (2, 0)
    assert {r["error"] for r in bench.responses()} == {"row_no_turn"}


def test_a_conversation_may_be_a_file(model: FakeModel, tmp_path: Path) -> None:
    model.answer = echo
    (tmp_path / "talk.json").write_text(json.dumps(SALE))
    bench = MediaBench(tmp_path, model.url, "conversational", [{"row_data": "talk.json"}], ontology=CHAT)
    bench.runs(generate="every")
    bench.data(roles=ROLES)
    assert bench.go().calls == 2


TREE = {
    "type": "application/vnd.labelbox.conversational.model-chat-evaluation",
    "version": 2,
    "actors": {
        "h": {"role": "human", "metadata": {"name": "User"}},
        "a": {"role": "model", "metadata": {"modelConfigId": "one"}},
        "b": {"role": "model", "metadata": {"modelConfigId": "two"}},
    },
    "messages": {
        "1": {"actorId": "h", "content": [{"type": "text", "content": "Hello"}], "childMessageIds": ["2"]},
        "2": {"actorId": "a", "content": [{"type": "text", "content": "Hi"}], "childMessageIds": ["3"]},
        "3": {
            "actorId": "h",
            "content": [{"type": "text", "content": "Go"}, {"type": "text", "content": "on"}],
            "childMessageIds": ["4", "5"],
        },
        "4": {"actorId": "a", "content": [{"type": "text", "content": "first"}], "childMessageIds": []},
        "5": {"actorId": "b", "content": [{"type": "text", "content": "second"}], "childMessageIds": []},
    },
    "rootMessageIds": ["1"],
}


def test_a_chat_evaluation_is_its_first_branch_with_the_roles_it_says(model: FakeModel, tmp_path: Path) -> None:
    bench_of(tmp_path, model, TREE).call()
    assert turns_in(model.requests[0]) == [
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Go\non"),
        ("assistant", "first"),
    ]


def hostile() -> Iterator[dict[str, Any]]:
    def changed(message_id: str, **changes: Any) -> dict[str, Any]:
        return {**TREE, "messages": {**TREE["messages"], message_id: {**TREE["messages"][message_id], **changes}}}

    yield changed("4", childMessageIds=["1"])
    yield changed("1", childMessageIds=["1"])
    yield changed("4", childMessageIds=["99"])
    yield changed("4", childMessageIds={"1": 1})
    yield changed("4", childMessageIds=[["1"]])
    yield changed("4", actorId="nobody")
    yield changed("4", actorId={})
    yield changed("4", content="plain")
    yield changed("4", content=[{"type": "image", "content": "x"}])
    yield {**TREE, "rootMessageIds": "1"}
    yield {**TREE, "actors": []}
    yield {"messages": {}}
    yield talk(said("1", "a", "x"), said("1", "b", "y"))
    yield {"messages": [{"messageId": "1", "content": {}, "user": {"userId": "1"}}]}


@pytest.mark.parametrize("conversation", list(hostile()))
def test_what_is_no_sound_conversation_is_one_row_that_is_not_sent(
    conversation: dict[str, Any], model: FakeModel, tmp_path: Path
) -> None:
    report = bench_of(tmp_path, model, conversation, SALE).call()
    assert (report.ok, report.not_sent, report.errors) == (1, 1, {"row_not_media": 1})


def test_an_actor_with_a_role_nobody_knows_is_an_assistant_unless_it_speaks_first(
    model: FakeModel, tmp_path: Path
) -> None:
    odd = {**TREE, "actors": {**TREE["actors"], "a": {"role": "wizard"}}}
    bench_of(tmp_path, model, odd).call()
    assert [role for role, _ in turns_in(model.requests[0])] == ["user", "assistant", "user", "assistant"]

"""The demo's endpoint speaks the document's protocol, says what is wrong with a request, starts and stops cleanly."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import demo
from demo.endpoint.answers import Endpoint, Model, load_models
from demo.endpoint.prompts import ModelRequest, RequestError, read_request
from demo.endpoint.server import MAX_BODY_BYTES, EndpointServer, open_server

DEMO = Path(demo.__file__).parent
CAT = base64.b64encode((DEMO / "home/pictures/chelsea.jpg").read_bytes()).decode()
PATHS = ("/objects", "/person-mask", "/faces", "/texts", "/moods", "/chat")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return load_models()


@pytest.fixture
def endpoint(models: dict[str, Model]) -> Endpoint:
    return Endpoint(models)


@pytest.fixture
def server(endpoint: Endpoint) -> Iterator[EndpointServer]:
    with open_server(0, endpoint) as opened:
        thread = Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def turn(*parts: dict[str, object], role: str = "user") -> dict[str, object]:
    return {"role": role, "parts": list(parts)}


def body(*turns: dict[str, object], **more: object) -> bytes:
    return json.dumps({"prompt": list(turns), **more}).encode()


def post(endpoint: Endpoint, path: str, content: bytes, **headers: str) -> tuple[int, Any]:
    return endpoint.answer(path, content, headers)


def test_a_picture_is_answered_with_the_documents_boxes(endpoint: Endpoint) -> None:
    status, reply = post(endpoint, "/objects", body(turn({"image": CAT})))
    assert status == 200
    assert reply["Cat"]["boxes"][0] == pytest.approx([3, 1, 421, 299], abs=2)
    assert reply["Cat"]["scores"][0] == pytest.approx(0.847, abs=0.01)


@pytest.mark.parametrize("path", PATHS[:3])
def test_every_picture_model_answers_json_that_can_be_sent(endpoint: Endpoint, path: str) -> None:
    status, reply = post(endpoint, path, body(turn({"image": CAT})))
    assert status == 200
    assert json.loads(json.dumps(reply, allow_nan=False)) == reply != {}


def test_parameters_are_honoured(endpoint: Endpoint) -> None:
    sure = body(turn({"image": CAT}), inference_params={"confidence": 0.95})
    assert post(endpoint, "/objects", sure) == (200, {})


def test_a_system_turn_and_a_prompt_are_no_part_of_the_text(endpoint: Endpoint) -> None:
    text = "Send it to 12 Elm Street, Reno, NV 89501."
    plain = post(endpoint, "/texts", body(turn({"text": text})))
    prompted = post(
        endpoint,
        "/texts",
        body(turn({"text": "Antworte auf Deutsch."}, role="system"), turn({"text": "Which address?"}, {"text": text})),
    )
    assert plain == prompted
    assert plain[1]["zip_code"] == [{"start": 35, "end": 40, "text": "89501", "score": 1.0}]
    assert text[35:40] == "89501"


def test_of_a_conversation_the_last_user_turn_is_answered(endpoint: Endpoint) -> None:
    history = [turn({"text": "Das ist ein schlechter Tag."}), turn({"text": "Warum?"}, role="assistant")]
    status, reply = post(endpoint, "/texts", body(*history, turn({"text": "The weather is terrible and awful."})))
    assert status == 200
    assert reply["language"]["answer"] == "en"
    assert reply["sentiment"]["answer"] == "negative"


def test_every_message_of_the_user_gets_its_mood_and_no_other(endpoint: Endpoint) -> None:
    turns = [
        {**turn({"text": "This is awful and terrible."}), "message_id": "m1"},
        {**turn({"text": "I am so sorry."}, role="assistant"), "message_id": "m2"},
        turn({"text": "No id."}),
        {**turn({"text": "Thank you, wonderful!"}), "message_id": "m4"},
    ]
    status, reply = post(endpoint, "/moods", body(*turns))
    assert status == 200
    assert [(mood["message_id"], mood["answer"]) for mood in reply["mood"]] == [("m1", "annoyed"), ("m4", "glad")]
    assert post(endpoint, "/moods", body(turn({"text": "No id."}))) == (200, {})


def test_the_chat_says_nothing_twice_that_is_in_its_history(endpoint: Endpoint) -> None:
    turns = [turn({"text": "Thank you."})]
    said = []
    for _ in range(2):
        _, reply = post(endpoint, "/chat", body(*turns))
        said.append(reply["reply"])
        turns += [turn({"text": reply["reply"]}, role="assistant"), turn({"text": "Thank you."})]
    assert said == ["You are welcome.", "Gladly."]


def test_only_the_features_of_the_ontology_are_answered(endpoint: Endpoint) -> None:
    ontology = {"media_type": "TEXT", "tools": [], "classifications": [{"name": "language", "type": "radio"}]}
    _, reply = post(endpoint, "/texts", body(turn({"text": "This is a fine day."}), ontology=ontology, max_tokens=9))
    assert list(reply) == ["language"]


def test_an_image_before_its_attachments_is_the_data_row(endpoint: Endpoint) -> None:
    rocket = base64.b64encode((DEMO / "home/pictures/rocket.jpg").read_bytes()).decode()
    _, reply = post(endpoint, "/objects", body(turn({"text": "what?"}, {"image": CAT}, {"image": rocket})))
    assert list(reply) == ["Cat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a JSON object; got what is not JSON"),
        (b"\xff\xfe", "expected a JSON object; got what is not JSON"),
        (b"[" * 100_000, "expected a JSON object; got what is not JSON"),
        (b"[]", "expected a JSON object; got list"),
        (b"null", "expected a JSON object; got null"),
        (b"{}", "prompt: expected a list of"),
        (b'{"prompt": "hello"}', "prompt: expected a list of"),
        (body({"role": "model", "parts": []}), "prompt[0].role: expected one of system, user, assistant"),
        (body(turn({"text": "x"}, role="system")), "prompt: expected a turn of the role user"),
        (body({"role": "user"}), "prompt: expected a list of parts"),
        (body(turn({"video": "x"})), "parts[0]: expected one of text and image"),
        (body(turn({"text": "x", "image": "y"})), "parts[0]: expected one of text and image"),
        (body(turn({"text": 5})), "parts[0]: expected one of text and image"),
        (body(turn({"image": CAT})), "expected a text part in the last user turn"),
        (body(turn({"text": "\ud800"})), "prompt: a string holds half a surrogate pair"),
        (body(turn({"text": "x"}), inference_params=[]), "inference_params: expected an object; got list"),
        (body(turn({"text": "x"}), inference_params={"tasks": 5}), "inference_params.tasks: expected a list of"),
        (body(turn({"text": "x"}), ontology="none"), "ontology: expected an object; got str"),
        (body(turn({"text": "x"}), ontology={"tools": ["a"]}), "ontology.tools: expected a list of objects"),
    ],
)
def test_a_bad_request_is_a_400_that_says_where(endpoint: Endpoint, content: bytes, message: str) -> None:
    status, reply = post(endpoint, "/texts", content)
    assert status == 400
    assert message in reply["error"]


def test_a_text_for_a_picture_model_is_a_400(endpoint: Endpoint) -> None:
    assert post(endpoint, "/faces", body(turn({"text": "x"})))[0] == 400


@pytest.mark.parametrize("image", ["", "####", "bm90IGEgcGljdHVyZQ==", CAT[:4000], f"data:image/png;base64,{CAT}", "é"])
def test_a_picture_that_cannot_be_decoded_is_a_422_without_its_bytes(endpoint: Endpoint, image: str) -> None:
    status, reply = post(endpoint, "/objects", body(turn({"image": image})))
    assert status == 422
    assert "picture" in reply["error"] or "image" in reply["error"]
    assert len(reply["error"]) < 100


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["prompt", "role", "parts", "text", "ontology", "tools", "name"]), inner)
    ),
    max_leaves=12,
)


@given(payload=JSON | JSON.map(lambda inner: {"prompt": [{"role": "user", "parts": inner}], "ontology": inner}))
@settings(max_examples=100, deadline=None)
def test_no_json_does_more_than_be_refused(payload: object) -> None:
    try:
        assert isinstance(read_request(json.dumps(payload).encode()), ModelRequest)
    except RequestError as err:
        assert str(err)


def test_an_unknown_path_names_those_that_exist(endpoint: Endpoint) -> None:
    status, reply = post(endpoint, "/object", b"")
    assert status == 404
    assert all(path in reply["error"] for path in PATHS)


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Basic secret", "secret", "Bearer secrét"])
def test_without_the_token_nothing_is_answered_or_counted(models: dict[str, Model], header: str) -> None:
    guarded = Endpoint(models, token="secret")
    status, reply = post(guarded, "/texts", body(turn({"text": "Hello."})), Authorization=header)
    assert status == 401
    assert "secret" not in reply["error"]
    assert guarded.health()[1]["calls"]["texts"] == 0  # type: ignore[index]


def test_the_token_opens_the_endpoint(models: dict[str, Model]) -> None:
    guarded = Endpoint(models, token="secret")
    assert post(guarded, "/texts", body(turn({"text": "Hello."})), Authorization="Bearer secret")[0] == 200


def test_health_counts_every_call_of_every_model(endpoint: Endpoint) -> None:
    post(endpoint, "/texts", body(turn({"text": "Hello."})))
    post(endpoint, "/texts", b"broken")
    assert endpoint.health() == (
        200,
        {"status": "ok", "calls": {"objects": 0, "person-mask": 0, "faces": 0, "texts": 2, "moods": 0, "chat": 0}},
    )


def test_calls_side_by_side_on_open_connections_are_all_answered_and_counted(server: EndpointServer) -> None:
    rows = [f"Send it to {number} Elm Street, Reno, NV 89501." for number in range(1, 41)]
    with httpx.Client(base_url=server.url) as client, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda text: client.post("/texts", content=body(turn({"text": text}))).json(), rows))
        assert [reply["house_number"][0]["text"] for reply in replies] == [str(number) for number in range(1, 41)]
        assert client.get("/health").json()["calls"]["texts"] == 40


def test_a_connection_stays_open_for_the_next_call(server: EndpointServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])
    for path, status in (("/health", 200), ("/texts", 200), ("/nowhere", 404), ("/texts?a=1", 200)):
        get = path == "/health"
        connection.request("GET" if get else "POST", path, None if get else body(turn({"text": "Hello."})))
        answer = connection.getresponse()
        assert (answer.version, answer.status, answer.headers["Content-Type"]) == (11, status, "application/json")
        assert json.loads(answer.read())
        assert connection.sock is not None
    connection.close()


@pytest.mark.parametrize(
    ("method", "head", "status"),
    [
        ("POST", "", 411),
        ("POST", "Transfer-Encoding: chunked\r\n", 411),
        ("POST", "Content-Length: -5\r\n", 411),
        ("POST", f"Content-Length: {MAX_BODY_BYTES + 1}\r\n", 413),
        ("POST", f"Content-Length: {'9' * 5000}\r\n", 413),
        ("GET", "Content-Length: 5\r\n", 404),
    ],
)
def test_a_body_that_is_not_read_costs_the_connection(
    server: EndpointServer, method: str, head: str, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", server.server_address[1])) as connection:
        connection.sendall(f"{method} /texts HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Connection: close" in answer


def test_a_token_travels_in_a_header_of_any_case(models: dict[str, Model]) -> None:
    with open_server(0, Endpoint(models, token="secret")) as guarded:
        thread = Thread(target=guarded.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        content = body(turn({"text": "Hello."}))
        assert httpx.post(f"{guarded.url}/texts", content=content).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert httpx.post(f"{guarded.url}/texts", content=content, headers=headers).status_code == 200
        guarded.shutdown()
        thread.join()


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "demo.endpoint", *arguments]


def test_the_command_takes_another_port_says_which_and_stops_on_sigterm(tmp_path: Path) -> None:
    port_file = tmp_path / "run" / "url"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = command("--port", str(port), "--port-file", str(port_file), "--token-env", "DEMO_TOKEN")
        environ = {**os.environ, "DEMO_TOKEN": "secret"}
        with subprocess.Popen(arguments, cwd=DEMO.parent, env=environ, stdout=subprocess.PIPE, text=True) as process:
            try:
                url = wait_for(port_file)
                assert url != f"http://127.0.0.1:{port}"
                assert httpx.post(f"{url}/texts", content=b"{}").status_code == 401
                assert httpx.get(f"{url}/health").json()["status"] == "ok"
            finally:
                process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert output.splitlines() == [f"port {port} is taken", f"demo models ready on {url}", "stopped"]
    assert not port_file.exists()


def wait_for(file: Path) -> str:
    for _ in range(600):
        if file.exists():
            return file.read_text("utf-8").strip()
        time.sleep(0.05)
    raise AssertionError(f"{file.name} was not written")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--token-env", "NO_SUCH_TOKEN"], "NO_SUCH_TOKEN"), (["--port", "70000"], "expected a number from 0 to 65535")],
)
def test_a_command_that_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    done = subprocess.run(command(*arguments), cwd=DEMO.parent, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert message in done.stderr

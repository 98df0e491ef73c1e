"""The part of the annotation platform's API that sending needs, on 127.0.0.1, with the faults that it may have.

It keeps what arrived. `faults` is what the next requests get instead of, or on top of, an answer.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "lb-key-0123456789abcdef"
IMPORTS = {
    "createModelAssistedLabelingPredictionImport": "modelAssistedLabelingPredictionImport",
    "createLabelImport": "labelImport",
    "createModelErrorAnalysisPredictionImport": "modelErrorAnalysisPredictionImport",
}
QUEUES = [
    {"id": "q1", "name": "Initial labeling task", "queueType": "INITIAL_LABELING_QUEUE"},
    {"id": "q2", "name": "Rework (all rejected)", "queueType": "MANUAL_REWORK_QUEUE"},
]
DROP, DROP_AFTER = "drop", "drop after"
"""The connection is closed before the request is looked at, or once it has been done."""

Fault = str | tuple[int, dict[str, str], bytes]


class FakePlatform:
    """The server. Lines whose name is in `refused_names` fail; an import runs for `polls` looks at it."""

    def __init__(self) -> None:
        self.key = KEY
        self.refused_names: set[str] = set()
        self.silent_about: set[str] = set()
        self.polls = 2
        self.state = "FINISHED"
        self.faults: list[Fault] = []
        self.fault_at: Callable[[str], bool] = lambda _: True
        self.status_noise = b""
        self.imports: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.arrived: Counter[tuple[str, str]] = Counter()
        """(place, uuid) -> how often it was taken."""
        self.asked: list[str] = []
        """Root fields of the requests, in order."""
        self.registered: list[tuple[str, list[str]]] = []
        self.split_of: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.orders: list[dict[str, Any]] = []
        self.headers_of_files: list[dict[str, str]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer._serve(self)

            def do_GET(self) -> None:
                outer._file(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"{self.base}/graphql"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def lines(self) -> list[dict[str, Any]]:
        """Every line of every import, in the order they came."""
        return [line for one in self.imports.values() for line in one["lines"]]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self._lock:
            query, variables, content = _request_of(handler, body)
            root = re.findall(r"\w+", re.sub(r"^\s*(query|mutation)\s*\w*\s*(\(.*?\))?\s*\{", "", query, flags=re.S))[0]
            root = "createBatches" if "createBatches" in query else root
            root = "taskQueues" if "taskQueues" in query else root
            self.asked.append(root)
            fault = self.faults.pop(0) if self.faults and self.fault_at(root) else None
            if fault == DROP:
                handler.connection.close()
                return
            if isinstance(fault, tuple):
                _answer(handler, *fault)
                return
            if handler.headers["Authorization"] != f"Bearer {self.key}":
                _answer(handler, 401, {}, b'{"message": "who are you"}')
                return
            answer = self._answer(root, variables, content)
        if fault == DROP_AFTER:
            handler.connection.close()
            return
        _answer(handler, 200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _answer(self, root: str, variables: dict[str, Any], content: bytes | None) -> dict[str, Any]:
        place = next((variables[key] for key in ("id", "projectId", "modelRunId") if key in variables), "")
        if root in IMPORTS:
            assert content is not None
            return self._begin(root, place, variables["name"], content)
        if root in IMPORTS.values():
            return self._look(root, place, variables["name"])
        if root == "createMEAModelRunDataRowRegistrationTask":
            self.registered.append((place, variables["globalKeys"]))
            return {"data": {root: "t-register"}}
        if root == "createAssignDataRowsToDataSplitTask":
            (assignment,) = variables["data"]["assignments"]
            self.split_of |= dict.fromkeys(assignment["globalKeys"], assignment["split"])
            return {"data": {root: "t-split"}}
        if root in ("MEADataRowRegistrationTaskStatus", "assignDataRowsToDataSplitTaskStatus"):
            return {"data": {root: {"status": "COMPLETE", "errorMessage": None}}}
        if root == "createBatches":
            name = variables["input"]["batchNamePrefix"]
            if name in self.batches:
                return _error("RESOURCE_CONFLICT", "a batch of that name exists")
            self.batches[name] = variables["input"]
            return {"data": {"project": {root: {"tasks": [{"batchUuid": "b", "taskId": "t-batch"}]}}}}
        if root == "taskQueues":
            return {"data": {"project": {root: QUEUES}}}
        if root == "sendToAnnotateFromMea":
            self.orders.append(variables["input"])
            return {"data": {root: {"taskId": "t-send"}}}
        assert root == "user", root
        return {"data": {"user": {"createdTasks": [{"id": place, "status": "COMPLETE"}]}}}

    def _begin(self, root: str, place: str, name: str, content: bytes) -> dict[str, Any]:
        key = (IMPORTS[root], place, name)
        if key in self.imports:
            return _error("RESOURCE_CONFLICT", "an import of that name exists")
        lines = [json.loads(line) for line in content.splitlines()]
        self.imports[key] = {"lines": lines, "polls": self.polls}
        self.arrived.update((place, line["uuid"]) for line in lines)
        return {"data": {root: self._about(key)}}

    def _look(self, root: str, place: str, name: str) -> dict[str, Any]:
        key = (root, place, name)
        if key not in self.imports:
            return _error("RESOURCE_NOT_FOUND", "no such import") | {"data": None}
        self.imports[key]["polls"] -= 1
        return {"data": {root: self._about(key)}}

    def _about(self, key: tuple[str, str, str]) -> dict[str, Any]:
        one, over = self.imports[key], self.imports[key]["polls"] <= 0
        files = f"{self.base}/files/{list(self.imports).index(key)}"
        return {
            "id": "i",
            "name": key[2],
            "state": self.state if over else "RUNNING",
            "progress": "100%" if over else "50%",
            "inputFileUrl": f"{files}/input",
            "statusFileUrl": f"{files}/status" if over else None,
            "errorFileUrl": f"{files}/error" if over else None,
            "modelRunId": key[1],
            "createdBy": None,
            "lines": len(one["lines"]),
        }

    def _file(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.asked.append("file")
            self.headers_of_files.append(dict(handler.headers))
            if self.faults and self.fault_at("file"):
                fault = self.faults.pop(0)
                assert isinstance(fault, tuple)
                _answer(handler, *fault)
                return
            number = int(handler.path.split("/")[2])
            lines = list(self.imports.values())[number]["lines"]
            said = [self._status(line) for line in lines if line["uuid"] not in self.silent_about]
        body = b"\n".join(json.dumps(one).encode() for one in said)
        _answer(handler, 200, {"Content-Type": "application/x-ndjson"}, self.status_noise + body)

    def _status(self, line: dict[str, Any]) -> dict[str, Any]:
        about = {"uuid": line["uuid"], "dataRow": line["dataRow"]}
        if line.get("name") not in self.refused_names:
            return about | {"status": "SUCCESS", "errors": []}
        error = {"name": "FeatureNotFound", "message": f"no feature {line['name']} ({KEY})", "additional_info": None}
        return about | {"status": "FAILURE", "errors": [error]}


def _request_of(handler: BaseHTTPRequestHandler, body: bytes) -> tuple[str, dict[str, Any], bytes | None]:
    """(query, variables, the uploaded file)."""
    kind = handler.headers["Content-Type"]
    if not kind.startswith("multipart/form-data"):
        parsed = json.loads(body)
        return parsed["query"], parsed["variables"] or {}, None
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    operations = json.loads(parts["operations"].get_payload(decode=True))
    ((file_name, places),) = json.loads(parts["map"].get_payload(decode=True)).items()
    assert places == ["variables.file"]
    assert parts[file_name].get_content_type() == "application/x-ndjson"
    content = parts[file_name].get_payload(decode=True)
    assert operations["variables"]["contentLength"] >= len(content)
    return operations["query"], operations["variables"], content


def _error(code: str, message: str) -> dict[str, Any]:
    return {"errors": [{"message": message, "extensions": {"code": code}}], "data": None}


def _answer(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)

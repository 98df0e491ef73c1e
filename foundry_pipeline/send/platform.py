"""Labelbox's API as far as sending needs it: GraphQL over one connection, uploads, files of statuses; with patience.

A refusal that passes (429, 503, an outage) is waited for, as long as the platform says. What stops everything is an
`EndpointStopped`; no message holds the key. Not built on the SDK `labelbox`, which knows no Retry-After, sleeps fixed
times, and cannot tell whether an upload whose answer was lost has arrived; its operations and fields are the same.

Source: SDK labelbox 7.17.0: schema/annotation_import.py, project.py, model_run.py, task.py.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from foundry_pipeline.config.secrets import SentWith
from foundry_pipeline.errors import ConfigError, EndpointStopped, Problem, shown

URL = "https://api.labelbox.com/graphql"
API_KEY = "LABELBOX_API_KEY"
"""The variable that holds the key."""
TRIES = 6
FIRST_WAIT_S, MOST_WAIT_S = 1.0, 300.0
POLL_S = (1.0, 2.0, 5.0, 10.0)
"""Between two looks at what the platform works on; the last again and again."""
PATIENCE_S = 6 * 3600.0
MOST_ANSWER_BYTES = 256 * 1024 * 1024
NDJSON = "application/x-ndjson"
IMPORT_FIELDS = "id name state progress statusFileUrl errorFileUrl"

Json = dict[str, Any]
Way = tuple[str | int, ...]
"""Keys and places, one in the other."""


@dataclass(frozen=True, slots=True)
class ImportKind:
    """One of the platform's import jobs: how it is begun, and how it is found by its name."""

    create: str
    find: str
    parent: str
    """The argument that holds the id of what it imports into."""


KINDS: Mapping[str, ImportKind] = {
    "pre_labels": ImportKind(
        "createModelAssistedLabelingPredictionImport", "modelAssistedLabelingPredictionImport", "projectId"
    ),
    "ground_truth": ImportKind("createLabelImport", "labelImport", "projectId"),
    "model_run": ImportKind(
        "createModelErrorAnalysisPredictionImport", "modelErrorAnalysisPredictionImport", "modelRunId"
    ),
}


@dataclass(frozen=True, slots=True)
class ImportEnd:
    """How an import ended: FINISHED or FAILED, and of each line None where it is in, else what is wrong with it.

    A line of which the platform says nothing is not in `said`.
    """

    state: str
    said: Mapping[str, str | None]


class _LostError(Exception):
    """Nobody knows whether the platform has done what it was asked."""


class Platform:
    """One connection to the platform. Use as a context manager; it serves one thread."""

    def __init__(
        self,
        sent_with: SentWith,
        scrub: Callable[[bytes], bytes],
        *,
        url: str = URL,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`scrub` takes the key out of what comes back. `clock` is seconds of the UTC epoch.

        Raises ConfigError for a URL over which the key would travel in the clear, but on this machine.
        """
        parts = httpx.URL(url)
        if parts.scheme != "https" and parts.host not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError([Problem("--url", f"expected an https URL; got {shown(url)}")])
        self._url, self._headers = url, sent_with.headers
        self._scrub, self._sleep, self.clock = scrub, sleep, clock
        self._http = httpx.Client(transport=transport, timeout=60.0, trust_env=False, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def run_import(self, target: str, place: str, name: str, content: bytes) -> ImportEnd:
        """Import NDJSON and wait for its end.

        `name` stands for this content: where there is an import of that name already, it is not sent again.
        """
        found = self._begun_import(KINDS[target], place, name, content)
        for wait_s in _poll_waits():
            if found["state"] != "RUNNING":
                break
            self._sleep(wait_s)
            found = self._find_import(KINDS[target], place, name) or found
        if found["state"] == "RUNNING":
            raise EndpointStopped("platform_slow", f"the import {name} is still running; send again to look after it")
        return ImportEnd(found["state"], self._statuses(found))

    def register_rows(self, model_run: str, global_keys: Sequence[str]) -> None:
        """The data rows are part of the model run; those that are already stay."""
        task = self._done(
            "mutation R($id: ID!, $globalKeys: [ID!]) {createMEAModelRunDataRowRegistrationTask("
            "where: {id: $id}, data: {globalKeys: $globalKeys})}",
            {"id": model_run, "globalKeys": list(global_keys)},
            ("createMEAModelRunDataRowRegistrationTask",),
        )
        self._wait("MEADataRowRegistrationTaskStatus", task)

    def assign_split(self, model_run: str, split: str, global_keys: Sequence[str]) -> None:
        """The data rows are for TRAINING, VALIDATION or TEST in the model run."""
        assignment = {"split": split, "globalKeys": list(global_keys)}
        task = self._done(
            "mutation A($id: ID!, $data: CreateAssignDataRowsToDataSplitTaskInput!) "
            "{createAssignDataRowsToDataSplitTask(modelRun: {id: $id}, data: $data)}",
            {"id": model_run, "data": {"assignments": [assignment]}},
            ("createAssignDataRowsToDataSplitTask",),
            experimental=True,
        )
        self._wait("assignDataRowsToDataSplitTaskStatus", task, experimental=True)

    def task_queues(self, project: str) -> list[Json]:
        """The steps of the project's workflow: id, name and queueType of each."""
        query = "query Q($id: ID!) {project(where: {id: $id}) {taskQueues {id name queueType}}}"
        queues: list[Json] = self._done(query, {"id": project}, ("project", "taskQueues"), experimental=True)
        return queues

    def create_batch(self, project: str, name: str, global_keys: Sequence[str], priority: int) -> None:
        """The data rows are in the project, in a batch whose name begins so; one that is there already counts."""
        body = {"batchNamePrefix": name, "globalKeys": list(global_keys), "priority": priority, "dataRowIds": []}
        try:
            tasks = self._done(
                "mutation B($id: ID!, $input: CreateBatchesInput!) {project(where: {id: $id}) "
                "{createBatches(input: $input) {tasks {batchUuid taskId}}}}",
                {"id": project, "input": body},
                ("project", "createBatches", "tasks"),
            )
        except EndpointStopped as stop:
            if stop.code == "platform_conflict":
                return
            raise
        for task in tasks:
            self._wait_task(_at(task, ("taskId",)))

    def send_to_annotate(self, order: Mapping[str, Any]) -> None:
        """Data rows of a model run, with their predictions, into a project; `order` is the platform's own input.

        Where the answer is lost, it is asked again for those rows only that are not in the project by then.
        """
        query = "mutation T($input: SendToAnnotateFromMeaInput!) {sendToAnnotateFromMea(input: $input) {taskId}}"
        way = ("sendToAnnotateFromMea", "taskId")
        try:
            task = _at(self._once({"query": query, "variables": {"input": dict(order)}}), way)
        except _LostError:
            task = self._done(query, {"input": {**order, "excludeDataRowsInProject": True}}, way)
        self._wait_task(task)

    def _begun_import(self, kind: ImportKind, place: str, name: str, content: bytes) -> Json:
        """The import of this name: the one that is there, or a new one."""
        for wait_s in (*_waits(), None):
            found = self._find_import(kind, place, name)
            if found is not None:
                return found
            try:
                return self._upload(kind, place, name, content)
            except _LostError as lost:
                if wait_s is None:
                    raise EndpointStopped("platform_unreachable", str(lost)) from None
                self._sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _find_import(self, kind: ImportKind, place: str, name: str) -> Json | None:
        query = (
            f"query F($id: ID!, $name: String!) {{{kind.find}(where: {{{kind.parent}: $id, name: $name}}) "
            f"{{{IMPORT_FIELDS}}}}}"
        )
        try:
            found = self._done(query, {"id": place, "name": name}, (kind.find,))
        except EndpointStopped as stop:
            if stop.code == "platform_missing":
                return None
            raise
        return None if found is None else _import_of(found)

    def _upload(self, kind: ImportKind, place: str, name: str, content: bytes) -> Json:
        """As the GraphQL multipart request specification has it."""
        query = (
            f"mutation C($id: ID!, $name: String!, $file: Upload!, $contentLength: Int!) {{{kind.create}(data: {{"
            f"{kind.parent}: $id name: $name filePayload: {{file: $file, contentLength: $contentLength}}}}) "
            f"{{{IMPORT_FIELDS}}}}}"
        )
        file_name = f"{place}__{name}.ndjson"
        variables = {"file": None, "contentLength": len(content), "id": place, "name": name}
        files = {
            "operations": (None, json.dumps({"query": query, "variables": variables})),
            "map": (None, json.dumps({file_name: ["variables.file"]})),
            file_name: (file_name, content, NDJSON),
        }
        try:
            return _import_of(self._once(files=files).get(kind.create))
        except EndpointStopped as stop:
            if stop.code == "platform_conflict":  # another process has begun it since we looked
                raise _LostError(stop.message) from None
            raise

    def _statuses(self, found: Json) -> dict[str, str | None]:
        statuses: dict[str, str | None] = {}
        for line in self._lines(found["statusFileUrl"] or found["errorFileUrl"]):
            uuid, failed = line.get("uuid"), line.get("status") != "SUCCESS"
            if isinstance(uuid, str):
                statuses[uuid] = self._said(line.get("errors")) if failed else None
        return statuses

    def _said(self, errors: object) -> str:
        """The messages of one line's errors."""
        listed = errors if isinstance(errors, list) else [errors]
        said = [e.get("message") or e.get("name") if isinstance(e, Mapping) else e for e in listed]
        text = "; ".join(str(one) for one in said if one) or "no reason given"
        return self._clean(text)[:1000]

    def _lines(self, url: object) -> Iterator[Json]:
        """The objects of an NDJSON file that the platform names, whatever else is in it. The key does not go there."""
        if not isinstance(url, str):
            return
        if not url.startswith("https://") and not self._url.startswith("http://"):
            raise EndpointStopped("platform_garbage", f"the platform names a file that is not at https: {shown(url)}")
        for line in self._file(url).splitlines():
            with contextlib.suppress(orjson.JSONDecodeError):
                parsed = orjson.loads(line)
                if isinstance(parsed, dict):
                    yield parsed

    def _file(self, url: str) -> bytes:
        """Nothing where the file is gone: the platform keeps it for a day."""
        try:
            content: bytes = self._patiently(lambda: self._received(self._http.build_request("GET", url)))
        except EndpointStopped as stop:
            if stop.code in ("platform_key_refused", "platform_refused"):
                return b""
            raise
        return content

    def _wait_task(self, task_id: str) -> None:
        query = "query K($id: ID!) {user {createdTasks(where: {id: $id} skip: 0 first: 1) {id status}}}"
        self._wait_for(query, task_id, ("user", "createdTasks", 0))

    def _wait(self, status: str, task_id: str, *, experimental: bool = False) -> None:
        query = f"query S($id: ID!) {{{status}(where: {{id: $id}}) {{status errorMessage}}}}"
        self._wait_for(query, task_id, (status,), experimental=experimental)

    def _wait_for(self, query: str, task_id: str, way: Way, *, experimental: bool = False) -> None:
        """Until the platform has done the task."""
        for wait_s in _poll_waits():
            found = self._done(query, {"id": task_id}, way, experimental=experimental)
            status = _at(found, ("status",))
            if status == "COMPLETE":
                return
            if status in ("FAILED", "CANCELED"):
                reason = self._clean(str(found.get("errorMessage") or "no reason given"))
                raise EndpointStopped("platform_task_failed", f"the platform could not do it: {shown(reason, 400)}")
            self._sleep(wait_s)
        raise EndpointStopped("platform_slow", f"the task {shown(task_id)} does not end")

    def _done(self, query: str, variables: Json, way: Way, *, experimental: bool = False) -> Any:
        """What lies at `way` in the data of a request that may be repeated."""
        body = {"query": query, "variables": variables}
        return _at(self._patiently(lambda: self._once(body, experimental=experimental)), way)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        for wait_s in (*_waits(), None):
            try:
                return ask()
            except _LostError as lost:
                if wait_s is None:
                    raise EndpointStopped("platform_unreachable", str(lost)) from None
                self._sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _once(self, body: Json | None = None, *, files: Any = None, experimental: bool = False) -> Json:
        """The data of one request, sent again only where the platform has surely not taken it: while it says 429."""
        url = self._url.replace("/graphql", "/_gql") if experimental else self._url
        request = self._http.build_request("POST", url, headers=self._headers, json=body, files=files)
        content = self._received(request)
        try:
            answer = orjson.loads(content)
            errors, data = answer.get("errors") or [], answer.get("data")
            if errors:
                self._raise_for(errors)
        except (orjson.JSONDecodeError, AttributeError, TypeError, KeyError):
            raise _LostError(f"the platform does not answer in its own language: {self._shown(content)}") from None
        if not isinstance(data, dict):
            raise _LostError(f"the platform's answer has no data: {self._shown(content)}")
        return data

    def _raise_for(self, errors: Sequence[Mapping[str, Any]]) -> None:
        """Errors inside an answer. The first one speaks."""
        codes = [(error.get("extensions") or {}).get("code") for error in errors]
        message = shown(self._clean(str(errors[0].get("message"))), 400)
        if "AUTHENTICATION_ERROR" in codes:
            raise EndpointStopped("platform_key_refused", f"the platform refuses the key in {API_KEY}")
        if "RESOURCE_NOT_FOUND" in codes:
            raise EndpointStopped("platform_missing", f"the platform has no such thing: {message}")
        if "RESOURCE_CONFLICT" in codes:
            raise EndpointStopped("platform_conflict", message)
        if "INTERNAL_SERVER_ERROR" in codes or "API_LIMIT" in codes:
            raise _LostError(message)
        raise EndpointStopped("platform_refused", f"the platform refuses: {message}")

    def _received(self, request: httpx.Request) -> bytes:
        """The body of a good answer. Waits while the platform says that it is too much."""
        for wait_s in (*_waits(), None):
            try:
                response = self._http.send(request, stream=True)
                content = _read(response)
            except httpx.HTTPError as err:
                reason = self._clean(" ".join(str(err).split()))[:200]
                raise _LostError(f"the platform cannot be reached: {type(err).__name__}: {reason}") from None
            if response.status_code != 429 or wait_s is None:
                break
            self._sleep(self._retry_after_s(response, wait_s))
        if response.status_code in (401, 403):
            raise EndpointStopped("platform_key_refused", f"the platform refuses the key in {API_KEY}")
        if response.status_code == 429 or response.status_code >= 500:
            self._sleep(self._retry_after_s(response, 0.0))
            raise _LostError(f"the platform answers {response.status_code}: {self._shown(content)}")
        if response.status_code >= 300:
            text = f"the platform answers {response.status_code}: {self._shown(content)}"
            raise EndpointStopped("platform_refused", text)
        return content

    def _retry_after_s(self, response: httpx.Response, otherwise_s: float) -> float:
        """How long the platform asks for, in seconds or as a date; at most five minutes."""
        said = response.headers.get("Retry-After", "").strip()
        if said.isdigit() and len(said) < 10:
            return min(float(said), MOST_WAIT_S)
        with contextlib.suppress(ValueError, OverflowError):
            until = email.utils.parsedate_to_datetime(said).timestamp()
            return min(max(until - self.clock(), 0.0), MOST_WAIT_S)
        return otherwise_s

    def _shown(self, content: bytes) -> str:
        return shown(self._scrub(content[:2000]).decode("utf-8", "replace"))

    def _clean(self, text: str) -> str:
        return self._scrub(text.encode("utf-8", "replace")).decode("utf-8", "replace")


def _at(data: Any, way: Way) -> Any:
    """What lies there; null where the platform says null on the way's last step."""
    try:
        for step in way:
            data = data[step]
    except (KeyError, IndexError, TypeError):
        raise EndpointStopped("platform_garbage", f"the platform's answer has no {'.'.join(map(str, way))}") from None
    return data


def _waits() -> list[float]:
    """Before each try but the first."""
    return [FIRST_WAIT_S * 2**number for number in range(TRIES - 1)]


def _poll_waits() -> Iterator[float]:
    yield from POLL_S
    for _ in range(int(PATIENCE_S / POLL_S[-1])):
        yield POLL_S[-1]


def _read(response: httpx.Response) -> bytes:
    """The whole body, which has a limit after decompression, too."""
    pieces, size = [], 0
    with contextlib.closing(response):
        for piece in response.iter_bytes():
            size += len(piece)
            if size > MOST_ANSWER_BYTES:
                raise EndpointStopped("platform_garbage", f"an answer over {MOST_ANSWER_BYTES:,} bytes")
            pieces.append(piece)
    return b"".join(pieces)


def _import_of(found: object) -> Json:
    if isinstance(found, dict) and isinstance(found.get("state"), str):
        return {"statusFileUrl": None, "errorFileUrl": None} | found
    raise _LostError(f"expected an import with its state; got {shown(found)}")

"""What the endpoint answers, without a socket: path, body and headers in; status and JSON out."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock

from demo.endpoint.prompts import ContentError, ModelRequest, RequestError, read_request
from demo.models.chat import answer_to
from demo.models.faces import FaceDetector
from demo.models.moods import MoodReader
from demo.models.open_images import ObjectDetector
from demo.models.params import ParameterError
from demo.models.pictures import PictureError, read_picture
from demo.models.selfie import PersonSegmenter
from demo.models.texts import TextAnalyst

Reply = Mapping[str, object]
Answer = tuple[int, Reply]
Model = Callable[[ModelRequest], Reply]


def load_models() -> dict[str, Model]:
    """Path -> model. Reads all weights: about a second."""
    objects, person, faces, texts = ObjectDetector(), PersonSegmenter(), FaceDetector(), TextAnalyst()
    moods = MoodReader()
    return {
        "/objects": lambda request: objects.predict(read_picture(request.picture()), request.params),
        "/person-mask": lambda request: person.predict(read_picture(request.picture()), request.params),
        "/faces": lambda request: faces.predict(read_picture(request.picture()), request.params),
        "/texts": lambda request: texts.predict(request.text(), request.params),
        "/moods": lambda request: moods.predict(_messages_of_the_user(request)),
        "/chat": lambda request: {"reply": answer_to(request.text(), _said_by_us(request))},
    }


def _messages_of_the_user(request: ModelRequest) -> list[tuple[str, str]]:
    return [(turn.message_id, turn.text) for turn in request.spoken if turn.role == "user" and turn.message_id]


def _said_by_us(request: ModelRequest) -> frozenset[str]:
    return frozenset(turn.text for turn in request.spoken if turn.role == "assistant")


class Endpoint:
    """The models behind their paths, a bearer token where there is one, and a count of the calls."""

    def __init__(self, models: Mapping[str, Model], token: str | None = None) -> None:
        self._models = models
        self._token = token
        self._calls: Counter[str] = Counter(dict.fromkeys(models, 0))
        self._counting = Lock()

    def health(self) -> Answer:
        """200, and how many calls each model has had since the start, refused ones included; unauthorized ones not."""
        with self._counting:
            return 200, {"status": "ok", "calls": {path.strip("/"): count for path, count in self._calls.items()}}

    def answer(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """One POST. 200 with the reply keyed by feature name, `{}` where nothing was found; else `{"error": ...}`.

        400: not a request of the protocol, or a bad parameter. 401: not the token. 404: no model there.
        422: a picture that cannot be decoded.
        """
        if path not in self._models:
            return 404, {"error": f"no model here; POST to one of {', '.join(self._models)}"}
        if not self._admits(headers.get("Authorization") or ""):
            return 401, {"error": "expected Authorization: Bearer and the token this endpoint was started with"}
        with self._counting:
            self._calls[path] += 1
        try:
            request = read_request(body)
            return 200, only_asked(self._models[path](request), request.features)
        except (RequestError, ParameterError) as err:
            return 400, {"error": str(err)}
        except (ContentError, PictureError) as err:
            return 422, {"error": str(err)}

    def _admits(self, authorization: str) -> bool:
        if self._token is None:
            return True
        return hmac.compare_digest(authorization.encode(), f"Bearer {self._token}".encode())


def only_asked(reply: Reply, features: frozenset[str] | None) -> Reply:
    """The reply without the features that the request's ontology does not name."""
    return reply if features is None else {name: value for name, value in reply.items() if name in features}

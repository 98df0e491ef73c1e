"""Secrets: shown nowhere, read when they are sent, sent only where they may go."""

import base64
import copy
import dataclasses
import json
import pickle
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_pipeline.config.secrets import Secret, SentWith, auth_headers, scrubber
from foundry_pipeline.config.settings import Settings
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.manifest import Auth, Manifest, SecretRef

SESAME = "sesame-open-1"


def manifest(**fields: object) -> Manifest:
    given_fields = {"secret": SecretRef("KEY"), "inference_endpoint": "https://models.example.com/predict", **fields}
    return dataclasses.replace(Manifest("m", "m", "m.yaml", "", 1.0), **given_fields)  # type: ignore[arg-type]


def sent(model: Manifest, environ: dict[str, str] | None = None, rules: Settings | None = None) -> SentWith:
    return auth_headers(model, {"KEY": SESAME} if environ is None else environ, rules or Settings())


@pytest.mark.parametrize(
    ("auth", "value", "expected"),
    [
        (Auth(), SESAME, ({"Authorization": f"Bearer {SESAME}"}, {})),
        (Auth("bearer", "X-Auth"), SESAME, ({"X-Auth": f"Bearer {SESAME}"}, {})),
        (Auth("header", "X-Api-Key"), SESAME, ({"X-Api-Key": SESAME}, {})),
        (Auth("basic"), "user:word", ({"Authorization": f"Basic {base64.b64encode(b'user:word').decode()}"}, {})),
        (Auth("query", "key"), SESAME, ({}, {"key": SESAME})),
        (Auth(), f" {SESAME}\n", ({"Authorization": f"Bearer {SESAME}"}, {})),
    ],
)
def test_the_secret_travels_as_the_manifest_says(auth: Auth, value: str, expected: SentWith):
    assert sent(manifest(auth=auth), {"KEY": value}) == expected


def test_a_model_without_secret_sends_none():
    assert sent(manifest(secret=None), {}) == ({}, {})


def test_a_literal_secret_is_sent():
    model = manifest(secret=SecretRef(None, Secret(SESAME)))
    assert sent(model, {}).headers == {"Authorization": f"Bearer {SESAME}"}


def test_the_manifests_headers_are_sent_with_references_filled_in():
    model = manifest(headers=(("X-Version", "2"), ("X-Team", "env:TEAM")))
    headers, _ = sent(model, {"KEY": SESAME, "TEAM": "blue"})
    assert headers == {"X-Version": "2", "X-Team": "blue", "Authorization": f"Bearer {SESAME}"}


def test_what_is_sent_fits_into_an_httpx_request():
    headers, params = sent(manifest(auth=Auth("query", "key")))
    request = httpx.Request("POST", "https://models.example.com/predict", headers=headers, params=params)
    assert request.url.params["key"] == SESAME


@pytest.mark.parametrize(
    ("model", "environ", "path"),
    [
        (manifest(), {}, "$.secrets"),
        (manifest(), {"KEY": " \n"}, "$.secrets"),
        (manifest(), {"KEY": f"{SESAME}\nX-Evil: 1"}, "$.secrets"),
        (manifest(), {"KEY": f"{SESAME}\u00e9"}, "$.secrets"),
        (manifest(auth=Auth("basic")), {"KEY": SESAME}, "$.secrets"),
        (manifest(headers=(("X-Team", "env:TEAM"),)), {"KEY": SESAME}, "$.headers.X-Team"),
        (manifest(headers=(("X-Team", "env:TEAM"),)), {"KEY": SESAME, "TEAM": "a\rb"}, "$.headers.X-Team"),
    ],
)
def test_a_secret_that_cannot_be_sent_is_a_config_error_that_does_not_show_it(
    model: Manifest, environ: dict[str, str], path: str
):
    with pytest.raises(ConfigError) as caught:
        sent(model, environ)
    (problem,) = caught.value.problems
    assert (problem.file, problem.path) == ("m.yaml", path)
    assert SESAME not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "allowed", "may_go"),
    [
        ("https://models.example.com/x", ("models.example.com",), True),
        ("https://MODELS.example.com/x", ("models.example.com",), True),
        ("https://models.example.com/x", ("models.example.com:443",), True),
        ("https://models.example.com/x", ("models.example.com:80",), False),
        ("http://127.0.0.1:8000/x", ("127.0.0.1:8000",), True),
        ("http://127.0.0.1:8000/x", ("127.0.0.1:8001", "localhost"), False),
        ("http://[::1]:8000/x", ("[::1]",), True),
        ("https://models.example.com.evil.org/x", ("models.example.com",), False),
        ("https://evil.org/models.example.com", ("models.example.com",), False),
        ("https://models.example.com/x", (), False),
    ],
)
@pytest.mark.parametrize("by_header", [False, True])
def test_a_listed_secret_goes_to_its_hosts_and_nowhere_else(
    endpoint: str, allowed: tuple[str, ...], may_go: bool, by_header: bool
):
    fields: dict[str, object] = {"secret": None, "headers": (("X-Key", "env:KEY"),)} if by_header else {}
    model = manifest(inference_endpoint=endpoint, **fields)
    rules = Settings(secret_hosts={"KEY": allowed})
    if may_go:
        assert SESAME in "".join(sent(model, rules=rules).headers.values())
    else:
        with pytest.raises(ConfigError, match=r"foundry\.yaml lets the secret KEY"):
            sent(model, rules=rules)


def test_a_secret_that_is_not_listed_may_go_anywhere():
    assert sent(manifest(), rules=Settings(secret_hosts={"OTHER": ()})).headers


def test_no_way_of_writing_a_secret_down_shows_it():
    secret = Secret(SESAME)
    ref = SecretRef(None, secret)
    model = manifest(secret=ref)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>20}",
        "".join(map(str, [secret])),
        repr(ref),
        repr(model),
    ]
    shown += [repr(sent(model, {})), str(dataclasses.asdict(model)), repr(copy.deepcopy(model))]
    assert not [text for text in shown if SESAME in text]
    with pytest.raises(TypeError):
        json.dumps(secret)


@pytest.mark.parametrize(
    "thing",
    [Secret(SESAME), SecretRef(None, Secret(SESAME)), SentWith({"a": SESAME}, {})],
    ids=["value", "ref", "sent"],
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(thing: object, protocol: int):
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(thing, protocol)


def test_a_reference_can_be_pickled():
    assert pickle.loads(pickle.dumps(SecretRef("KEY"))) == SecretRef("KEY")


def test_a_rotated_secret_is_taken_up_by_the_next_request():
    environ = {"KEY": "first-secret"}
    assert sent(manifest(), environ).headers == {"Authorization": "Bearer first-secret"}
    environ["KEY"] = "second-secret"
    assert sent(manifest(), environ).headers == {"Authorization": "Bearer second-secret"}


def test_every_secret_of_a_manifest_is_scrubbed_from_an_echo():
    model = manifest(headers=(("X-Team", "env:TEAM"), ("X-Version", "version-2")))
    scrub = scrubber(model, {"KEY": SESAME, "TEAM": "blue-team"})
    assert scrub(f"{SESAME} blue-team version-2".encode()) == b"*** *** version-2"
    literal = manifest(secret=SecretRef(None, Secret(SESAME)))
    assert scrubber(literal, {})(SESAME.encode()) == b"***"


def test_without_secrets_nothing_is_scrubbed():
    assert scrubber(manifest(secret=None), {})(b"{}") == b"{}"


def test_a_very_short_secret_is_not_scrubbed_since_it_stands_in_any_text():
    assert scrubber(manifest(), {"KEY": "a"})(b'{"cat": 1}') == b'{"cat": 1}'


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=30))
def test_an_echo_of_a_secret_is_scrubbed_in_every_spelling(value: str):
    scrub = scrubber(manifest(), {"KEY": value})
    for spelling in (value, quote(value, safe=""), json.dumps(value)[1:-1], base64.b64encode(value.encode()).decode()):
        assert scrub(f"a {spelling} b".encode()) == b"a *** b"

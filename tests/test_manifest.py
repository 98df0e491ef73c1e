"""`model.yaml`: the document's own example, every field's bounds, and what YAML gets wrong by itself."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_pipeline.config.fields import Block
from foundry_pipeline.config.money import Money
from foundry_pipeline.config.params import complete_params
from foundry_pipeline.config.secrets import Auth, SecretRef
from foundry_pipeline.config.yaml_source import Findings, read_yaml
from foundry_pipeline.errors import ConfigError, Problem
from foundry_pipeline.manifest import Manifest, load_manifest, manifest_of, slug
from foundry_pipeline.ontology import Classification, FeatureKind, Ontology, Option, Tool

DOCUMENT = Path(__file__).parent / "fixtures" / "document_model.yaml"
REQUIRED = "name: m\ninference_endpoint: http://127.0.0.1:8000/predict\nrequests_per_second: 5\n"


def load(folder: Path, text: str | bytes, environ: dict[str, str] | None = None) -> Manifest:
    path = folder / "m.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_manifest(path, environ or {})


def problems(folder: Path, text: str | bytes, environ: dict[str, str] | None = None) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    return caught.value.problems


def places(found: tuple[Problem, ...]) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.path) for problem in found]


def warnings(folder: Path, text: str, environ: dict[str, str] | None = None) -> tuple[Problem, ...]:
    path = folder / "m.yaml"
    path.write_text(text)
    found = Findings("m.yaml")
    root = read_yaml(path, found)
    assert root is not None
    assert manifest_of(root, environ or {}, found) is not None, found.problems
    return found.warnings


def test_the_documents_manifest_has_one_problem_as_it_stands_its_placeholder_endpoint():
    with pytest.raises(ConfigError) as caught:
        load_manifest(DOCUMENT, {})
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (2, "$.inference_endpoint")
    assert "my_inference_endpoint" in problem.message


def test_the_documents_manifest_loads_entirely_once_its_endpoint_is_a_url(tmp_path: Path):
    text = DOCUMENT.read_text().replace("my_inference_endpoint", "https://models.example.com/predict")
    manifest = load(tmp_path, text)
    assert manifest.name == "My custom model"
    assert manifest.key == "my_custom_model"
    assert manifest.inference_endpoint == "https://models.example.com/predict"
    assert manifest.secret is not None and manifest.secret.literal is not None
    assert manifest.secret.literal.reveal() == "my_secret"
    assert manifest.requests_per_second == 0.1
    assert manifest.description == "My awesome custom model for object recognition"
    assert manifest.readme.startswith("### Intended Use\nObject recognition") and manifest.readme.endswith("...\n")
    assert manifest.allowed_asset_types == ("image",)
    assert manifest.allowed_feature_kinds == (FeatureKind.TEXT, FeatureKind.RADIO, FeatureKind.CHECKLIST)
    assert manifest.max_tokens == 1024
    assert manifest.ontology == Ontology(
        "image",
        (
            Classification(
                "label", FeatureKind.RADIO, "label", (Option("tench", "tench", 0), Option("goldfish", "goldfish", 1))
            ),
        ),
        (Tool("person", FeatureKind.RECTANGLE), Tool("bicycle", FeatureKind.RECTANGLE)),
    )
    assert complete_params(manifest, {}) == {
        "prompt": "",
        "confidence": 0.25,
        "max_new_tokens": 1024,
        "use_image_attachments": False,
    }


def test_the_documents_manifest_warns_of_its_literal_secret_and_of_kinds_beyond_the_allowed(tmp_path: Path):
    text = DOCUMENT.read_text().replace("my_inference_endpoint", "https://models.example.com/predict")
    found = warnings(tmp_path, text)
    assert places(found) == [(3, "$.secrets"), (14, "$.allowed_feature_kinds")]
    assert "rectangle" in found[1].message
    assert not any("my_secret" in str(warning) for warning in found)


def test_an_ontologys_own_kinds_are_what_a_reply_may_hold(tmp_path: Path):
    text = REQUIRED + "allowed_feature_kinds: [text]\nontology: {tools: [{name: a, tool: rectangle}]}\n"
    assert load(tmp_path, text).feature_kinds() == (FeatureKind.RECTANGLE,)
    assert load(tmp_path, REQUIRED + "allowed_feature_kinds: [text]\n").feature_kinds() == (FeatureKind.TEXT,)
    assert load(tmp_path, REQUIRED).feature_kinds() == tuple(FeatureKind)


def test_a_minimal_manifest_has_the_contracts_defaults(tmp_path: Path):
    manifest = load(tmp_path, REQUIRED)
    expected = Manifest("m", "m", str(tmp_path / "m.yaml"), "http://127.0.0.1:8000/predict", 5.0)
    assert manifest == expected


def test_every_optional_key_lands_in_its_field(tmp_path: Path):
    manifest = load(
        tmp_path,
        REQUIRED
        + """
protocol: foundry
secrets: env:MODEL_KEY
auth: {scheme: header, name: X-Api-Key}
headers: {X-Version: "2", X-Team: "env:TEAM_KEY"}
timeout_s: 30
max_concurrency: 4
max_attempts: 3
burst: 2
version: 1.10
cost_per_call: 0.002
""",
    )
    assert manifest.protocol == "foundry"
    assert manifest.secret == SecretRef("MODEL_KEY")
    assert manifest.auth == Auth("header", "X-Api-Key")
    assert manifest.headers == (("X-Version", "2"), ("X-Team", "env:TEAM_KEY"))
    assert (manifest.timeout_s, manifest.max_concurrency, manifest.max_attempts, manifest.burst) == (30.0, 4, 3, 2)
    assert manifest.version == "1.10"
    assert manifest.cost_per_call == Money(Decimal("0.002"))


def test_all_problems_of_a_file_come_at_once_in_reading_order(tmp_path: Path):
    found = problems(
        tmp_path,
        """name: no
inference_endpoint: ftp://host/x
requests_per_second: 0
max_attempts: 1.5
nmae: x
ontology:
  tools:
    - {name: a, tool: bbox}
""",
    )
    assert places(found) == [
        (1, "$.name"),
        (2, "$.inference_endpoint"),
        (3, "$.requests_per_second"),
        (4, "$.max_attempts"),
        (5, "$.nmae"),
        (8, "$.ontology.tools[0].tool"),
    ]
    assert all(problem.file == str(tmp_path / "m.yaml") for problem in found)
    assert "quote it" in found[0].message
    assert "did you mean 'name'" in found[4].message


def test_required_keys_are_named_also_where_they_are_empty(tmp_path: Path):
    found = problems(tmp_path, "requests_per_second:\ndescription: x\n")
    missing = ["name", "inference_endpoint", "requests_per_second"]
    assert [problem.path for problem in found] == [f"$.{key}" for key in missing]
    assert all(f"{key!r} is missing" in problem.message for key, problem in zip(missing, found, strict=True))


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("0", "over 0"),
        ("-1", "over 0"),
        (".inf", "finite"),
        (".nan", "finite"),
        ("-.inf", "finite"),
        ("true", "boolean"),
        ("1e3", "write 1000"),
        ('"0.1"', "write 0.1"),
        ("fast", "'fast'"),
        ("[1]", "a list"),
        ("1:30", "another base"),
        ("010", "another base"),
        ("100000", "10000"),
        ("9" * 5000, "64 bits"),
        ("!!float 1", "tags"),
    ],
)
def test_F081_a_rate_that_is_no_sane_number_is_refused_with_its_line(tmp_path: Path, written: str, says: str):
    text = f"name: m\ninference_endpoint: http://h/x\nrequests_per_second: {written}\n"
    (problem,) = problems(tmp_path, text)
    assert problem.line == 3
    assert says in problem.message
    assert len(problem.message) < 200


@pytest.mark.parametrize("written", ["0.1", "1", "1_000", "0.001", "1.0e+3"])
def test_slow_and_fast_rates_are_legal(tmp_path: Path, written: str):
    text = f"name: m\ninference_endpoint: http://h/x\nrequests_per_second: {written}\n"
    assert load(tmp_path, text).requests_per_second == float(written.replace("_", ""))


def test_the_endpoint_is_filled_in_from_the_environment(tmp_path: Path):
    text = REQUIRED.replace("http://127.0.0.1:8000", "${BASE}/${STAGE:-staging}")
    assert load(tmp_path, text, {"BASE": "https://a.b"}).inference_endpoint == "https://a.b/staging/predict"
    both = {"BASE": "https://a.b", "STAGE": "live"}
    assert load(tmp_path, text, both).inference_endpoint == "https://a.b/live/predict"
    assert load(tmp_path, text, {**both, "STAGE": ""}).inference_endpoint == "https://a.b/staging/predict"
    (problem,) = problems(tmp_path, text)
    assert "BASE is not set" in problem.message


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://user:sesame@h/x",
        "https://sesame@h/x",
        "https://h/x#part",
        "ftp://h/x",
        "h/x",
        "http://",
        "https:///x",
        "http://h:99999/x",
        "http://h:0/x",
        '"http://h/a b"',
        '"http://h/\\ta"',
        "http://[::1/x",
        "${open",
        "${1X}",
        "${A:-${B}}",
    ],
)
def test_what_is_no_url_of_an_endpoint_is_one_problem(tmp_path: Path, endpoint: str):
    text = f"name: m\ninference_endpoint: {endpoint}\nrequests_per_second: 1\n"
    (problem,) = problems(tmp_path, text)
    assert (problem.line, problem.path) == (2, "$.inference_endpoint")
    assert "sesame" not in problem.message


def test_a_key_in_the_endpoints_query_warns_without_showing_it(tmp_path: Path):
    (warning,) = warnings(tmp_path, REQUIRED.replace("/predict", "/predict?api_key=sesame"))
    assert "auth: query" in warning.message and "sesame" not in warning.message


@pytest.mark.parametrize(
    ("written", "environ", "expected"),
    [
        ("env:KEY", {"KEY": "v"}, SecretRef("KEY")),
        ("env:KEY", {}, SecretRef("KEY")),
        ("${KEY}", {"KEY": "v"}, SecretRef("KEY")),
        ("KEY", {"KEY": "v"}, SecretRef("KEY")),
        ("KEY", {}, SecretRef(None)),
        ("sk-live-123", {}, SecretRef(None)),
    ],
)
def test_secrets_is_a_reference_where_it_can_be_one_and_else_a_literal(
    tmp_path: Path, written: str, environ: dict[str, str], expected: SecretRef
):
    assert load(tmp_path, REQUIRED + f"secrets: {written}\n", environ).secret == expected


@pytest.mark.parametrize(
    ("written", "environ", "says"),
    [
        ("env:KEY", {"KEY": "v"}, None),
        ("KEY", {"KEY": "v"}, None),
        ("env:KEY", {}, "KEY is not set"),
        ("env:KEY", {"KEY": " "}, "KEY is not set"),
        ("sesame-1", {}, "in the clear"),
        ("sesame", {}, "the variable is not set"),
    ],
)
def test_a_secret_that_will_not_work_or_stands_in_the_clear_warns_with_its_line(
    tmp_path: Path, written: str, environ: dict[str, str], says: str | None
):
    found = warnings(tmp_path, REQUIRED + f"secrets: {written}\n", environ)
    assert [warning.line for warning in found] == ([4] if says else [])
    assert all(str(says) in w.message and "sesame" not in w.message for w in found)


@pytest.mark.parametrize("written", ["[sesame]", "{a: sesame}", "12345", "env:not-a-name", '""', "$sesame"])
def test_a_malformed_secret_is_never_shown(tmp_path: Path, written: str):
    (problem,) = problems(tmp_path, REQUIRED + f"secrets: {written}\n")
    assert problem.path == "$.secrets"
    assert not any(part in str(problem) for part in ("sesame", "12345", "not-a-name"))


def test_no_repr_of_a_manifest_shows_its_literal_secret(tmp_path: Path):
    manifest = load(tmp_path, REQUIRED + "secrets: sesame-1\n")
    assert "sesame" not in repr(manifest) + str(manifest)


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ("auth: header", "$.auth"),
        ("auth: digest", "$.auth"),
        ("auth: {scheme: query}", "$.auth.name"),
        ("auth: {scheme: header, name: 'a b'}", "$.auth.name"),
        ("auth: {scheme: header, name: Content-Length}", "$.auth.name"),
        ("auth: {schema: header, name: X}", "$.auth.schema"),
        ("headers: {Host: x}", "$.headers.Host"),
        ("headers: {'a b': x}", "$.headers['a b']"),
        ("headers: {X-A: 2}", "$.headers.X-A"),
        ("headers: {X-A: 'sesame\u00e9'}", "$.headers.X-A"),
        ('headers: {X-A: "sesame\\nX-B: 1"}', "$.headers.X-A"),
        ("headers: {X-A: 'env:a-b'}", "$.headers.X-A"),
        ("headers: {X-A: '${KEY}'}", "$.headers.X-A"),
        ("headers: {X-A: a, x-a: b}", "$.headers.x-a"),
        ("headers: {authorization: 'env:K'}\nsecrets: env:K", "$.headers.authorization"),
    ],
)
def test_authentication_that_cannot_be_sent_is_a_problem_at_its_place(tmp_path: Path, lines: str, path: str):
    found = problems(tmp_path, REQUIRED + lines + "\n")
    assert path in [problem.path for problem in found]
    assert not any("sesame" in problem.message for problem in found)


def test_a_header_that_looks_like_a_secret_warns(tmp_path: Path):
    found = warnings(tmp_path, REQUIRED + "headers: {Authorization: Bearer sesame, X-Trace: on1}\n")
    assert places(found) == [(4, "$.headers.Authorization")]
    assert "sesame" not in found[0].message


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ("protocol: openai", "$.protocol"),
        ("allowed_asset_types: [imgae]", "$.allowed_asset_types[0]"),
        ("allowed_asset_types: image", "$.allowed_asset_types"),
        ("allowed_asset_types: []", "$.allowed_asset_types"),
        ("allowed_asset_types: [image, image]", "$.allowed_asset_types[1]"),
        ("allowed_feature_kinds: [box]", "$.allowed_feature_kinds[0]"),
        ("max_tokens: 0", "$.max_tokens"),
        ("max_tokens: 1.5", "$.max_tokens"),
        ("timeout_s: 0", "$.timeout_s"),
        ("timeout_s: 120000", "$.timeout_s"),
        ("max_concurrency: 0", "$.max_concurrency"),
        ("max_attempts: yes", "$.max_attempts"),
        ("burst: 0", "$.burst"),
        ("cost_per_call: -1", "$.cost_per_call"),
        ("cost_per_call: 0.0000000001", "$.cost_per_call"),
        ("cost_per_call: {currency: USD}", "$.cost_per_call.amount"),
        ("cost_per_call: {amount: 1, curency: USD}", "$.cost_per_call.curency"),
        ("cost_per_call: .nan", "$.cost_per_call"),
        ("version: [1]", "$.version"),
        ("version: true", "$.version"),
        ("description: [a]", "$.description"),
        ("inference_params_json_schema: [a]", "$.inference_params_json_schema"),
    ],
)
def test_a_value_out_of_bounds_is_a_problem_at_its_place(tmp_path: Path, lines: str, path: str):
    (problem,) = problems(tmp_path, REQUIRED + lines + "\n")
    assert (problem.line, problem.path) == (4, path)


def test_an_unknown_protocol_is_told_what_is_known(tmp_path: Path):
    (problem,) = problems(tmp_path, REQUIRED + "protocol: openai\n")
    assert "expected one of foundry" in problem.message


def test_line_is_a_kind_although_the_document_does_not_list_it_and_superpixel_is_an_old_mask(tmp_path: Path):
    text = (
        REQUIRED
        + "allowed_feature_kinds: [line]\nontology:\n  tools: [{name: a, tool: line}, {name: b, tool: superpixel}]\n"
    )
    manifest = load(tmp_path, text)
    assert manifest.ontology is not None
    assert [tool.kind for tool in manifest.ontology.tools] == [FeatureKind.LINE, FeatureKind.MASK]


def test_nested_classifications_are_read_under_tools_and_options(tmp_path: Path):
    text = """ontology:
  media_type: image
  tools:
    - name: car
      tool: rectangle
      required: true
      color: "#ff0000"
      featureSchemaId: null
      classifications:
        - name: damage
          type: radio
          options:
            - value: dent
              options:
                - {instructions: how deep, type: text}
            - {label: Scratch, value: scratch}
  classifications:
    - {name: scene, type: checklist, scope: index, options: [{label: day}]}
"""
    ontology = load(tmp_path, REQUIRED + text).ontology
    how_deep = Classification("how deep", FeatureKind.TEXT, "how deep")
    options = (Option("dent", "dent", 0, (how_deep,)), Option("scratch", "Scratch", 1))
    damage = Classification("damage", FeatureKind.RADIO, "damage", options)
    scene = Classification("scene", FeatureKind.CHECKLIST, "scene", (Option("day", "day", 0),), scope="index")
    assert ontology == Ontology("image", (scene,), (Tool("car", FeatureKind.RECTANGLE, (damage,), True, "#ff0000"),))


@pytest.mark.parametrize(
    ("ontology", "path", "says"),
    [
        ("{}", "$.ontology", "names no feature"),
        ("[a]", "$.ontology", "mapping"),
        ("{tools: {name: a}}", "$.ontology.tools", "list"),
        ("{tools: [a]}", "$.ontology.tools[0]", "mapping"),
        ("{tools: [{tool: point}]}", "$.ontology.tools[0].name", "missing"),
        ("{tools: [{name: a}]}", "$.ontology.tools[0].tool", "missing"),
        ("{tools: [{name: yes, tool: point}]}", "$.ontology.tools[0].name", "quote it"),
        ("{tools: [{name: a, tool: radio}]}", "$.ontology.tools[0].tool", "under classifications"),
        ("{tools: [{name: a, tool: point, colour: red}]}", "$.ontology.tools[0].colour", "did you mean 'color'"),
        ("{tools: [{name: a, tool: point}, {name: a, tool: line}]}", "$.ontology.tools[1]", "'a' stands twice"),
        (
            "{tools: [{name: a, tool: point}], classifications: [{name: a, type: text}]}",
            "$.ontology.classifications[0]",
            "'a' stands twice",
        ),
        ("{classifications: [{name: a, type: radio}]}", "$.ontology.classifications[0]", "at least one option"),
        ("{classifications: [{name: a, type: point}]}", "$.ontology.classifications[0].type", "under tools"),
        (
            "{classifications: [{name: a, type: text, options: [{value: x}]}]}",
            "$.ontology.classifications[0]",
            "no options",
        ),
        (
            "{classifications: [{name: a, type: radio, options: [{value: x}, {value: x}]}]}",
            "$.ontology.classifications[0].options[1]",
            "value 'x' stands twice",
        ),
        (
            "{classifications: [{name: a, type: radio, options: [{value: x, position: 1}, {value: y}]}]}",
            "$.ontology.classifications[0].options[1]",
            "position 1 stands twice",
        ),
        (
            "{classifications: [{name: a, type: radio, options: [{value: 1}]}]}",
            "$.ontology.classifications[0].options[0].value",
            "quote it",
        ),
        (
            "{classifications: [{name: a, type: radio, options: [{position: 0}]}]}",
            "$.ontology.classifications[0].options[0].value",
            "missing",
        ),
        ("{media_type: PDF, tools: [{name: a, tool: point}]}", "$.ontology.media_type", "expected one of image"),
    ],
)
def test_an_ontology_that_cannot_be_meant_is_one_problem_at_its_place(
    tmp_path: Path, ontology: str, path: str, says: str
):
    (problem,) = problems(tmp_path, REQUIRED + f"ontology: {ontology}\n")
    assert problem.path == path
    assert says in problem.message


def test_the_ontologys_media_type_is_one_of_the_allowed_asset_types(tmp_path: Path):
    text = "ontology: {media_type: VIDEO, tools: [{name: a, tool: point}]}\n"
    (problem,) = problems(tmp_path, REQUIRED + "allowed_asset_types: [image]\n" + text)
    assert problem.path == "$.ontology.media_type"
    assert load(tmp_path, REQUIRED + text).media_types() == ("video",)


@pytest.mark.parametrize("where", ["allowed_asset_types: [image, video]", "description: x"])
def test_frames_is_no_feature_of_a_video_model(tmp_path: Path, where: str):
    media = "" if "video" in where else "media_type: video, "
    text = f"{where}\nontology: {{{media}tools: [{{name: frames, tool: point}}]}}\n"
    (problem,) = problems(tmp_path, REQUIRED + text)
    assert "'frames'" in problem.message
    assert load(tmp_path, REQUIRED + text.replace("video", "image").replace("[image, image]", "[image]"))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "empty"),
        ("# nothing\n", None, "empty"),
        ("- a\n", 1, "key: value"),
        ("word\n", 1, "key: value"),
        ("name: a\nname: b\n", 2, "'name' stands twice; first in line 1"),
        ("name: &a x\nreadme: y\n", 1, "aliases"),
        ("name: x\nreadme: *a\n", 2, "aliases"),
        ("a: &a [*a]\n", 1, "aliases"),
        ("name: !!python/object:os.system x\n", 1, "tags"),
        ("name: !!binary aGk=\n", 1, "tags"),
        ("name: !x y\n", 1, "tags"),
        ("a: 1\nno: x\n", 2, "'no' is not text in YAML: quote it"),
        ("1: x\n", 1, "not text"),
        ("? [a]\n: x\n", 1, "must be text"),
        ("<<: {a: 1}\n", 1, "merge keys"),
        ("name:\n\tx: 1\n", 2, "spaces"),
        ("name: [a\n", 2, "not YAML"),
        ("a: b: c\n", 1, "not YAML"),
        ("a: 1\n---\nb: 1\n", 2, "not YAML"),
        ('a: "\\UFFFFFFFF"\n', 1, "out of range"),
        ('name: "\\ud800"\n', 1, "surrogate"),
        ('name: "\\0"\n', 1, "NUL"),
        ("a: \x07\n", 1, "U+0007"),
        (b"a: 1\nb: \xff\n", 2, "UTF-8"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", 1, "deeper than 32"),
        ("a: " + "[" * 5000, 1, "deeper than 32"),
        ("a: x\n" * 60_000, 52429, "256 KB"),
    ],
)
def test_F082_what_yaml_itself_gets_wrong_is_refused_with_its_line(
    tmp_path: Path, text: str | bytes, line: int | None, says: str
):
    found = problems(tmp_path, text)
    assert any(problem.line == line and says in problem.message for problem in found), found


def test_invalid_yaml_is_reported_with_its_column(tmp_path: Path):
    (problem,) = problems(tmp_path, "a: b: c\n")
    assert "column 5" in problem.message


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path: Path):
    assert load(tmp_path, b"\xef\xbb\xbf" + REQUIRED.replace("\n", "\r\n").encode()).name == "m"


def test_a_file_that_is_not_there_is_a_problem_and_no_foreign_exception(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_manifest(tmp_path / "missing.yaml", {})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("My custom model", "my_custom_model"),
        ("objects", "objects"),
        ("Größe-2.0", "grosse_2_0"),
        ("7 segments", "model_7_segments"),
        ("__x__", "x"),
        ("../../etc", "etc"),
    ],
)
def test_a_key_has_lower_case_letters_digits_and_underscores(name: str, key: str):
    assert slug(name) == key


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_every_name_has_a_key_that_starts_with_a_letter(name: str):
    key = slug(name)
    assert key[0].isalpha() and set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
    assert slug(name) == key


KEYS = st.sampled_from(
    [
        "name",
        "inference_endpoint",
        "secrets",
        "requests_per_second",
        "ontology",
        "inference_params_json_schema",
        "properties",
        "default",
        "tools",
        "classifications",
        "options",
        "value",
        "label",
        "type",
        "tool",
        "headers",
        "auth",
        "scheme",
        "readme",
        "media_type",
        "$ref",
        "minimum",
    ]
)
SCALARS = st.one_of(
    st.sampled_from(
        ["no", "~", "1e3", ".nan", "'x'", "radio", "rectangle", "image", "http://h/x", "0.1", "env:K", "010", "number"]
    ),
    st.sampled_from(
        ['"\\ud800"', "2024-01-01", "12:30:45", "!!set {a}", "*a", "&a b", "${X}", "#/properties", "=", "<<"]
    ),
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
)
FLOW = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]"),
        st.dictionaries(KEYS, inner, max_size=4).map(
            lambda entries: "{" + ", ".join(f"{key}: {value}" for key, value in entries.items()) + "}"
        ),
    ),
    max_leaves=12,
)
LINES = st.lists(st.tuples(KEYS, FLOW).map(lambda pair: f"{pair[0]}: {pair[1]}"), max_size=6).map("\n".join)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(LINES, LINES.map(REQUIRED.__add__), st.text(max_size=60), st.binary(max_size=60)))
def test_any_file_gives_a_manifest_or_a_config_error_and_nothing_else(tmp_path: Path, content: str | bytes):
    path = tmp_path / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        manifest = load_manifest(path, {"K": "v"})
    except ConfigError as error:
        assert error.problems
        str(error).encode()
    else:
        assert manifest.requests_per_second > 0


def test_a_mapping_is_read_key_by_key_and_the_rest_is_reported(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: 2\n")
    found = Findings("x.yaml")
    root = read_yaml(path, found)
    assert root is not None
    block = Block.of(root, found)
    assert block is not None
    block.item("a")
    block.close()
    assert places(found.problems) == [(2, "$.b")]

"""The home folder: datasets, runs and `foundry.yaml`, each alone and against the others."""

import os
from decimal import Decimal
from pathlib import Path

import pytest

from foundry_pipeline.config.money import Money
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.exports import FORMATS
from foundry_pipeline.home import Home, MinScore, Settings, home_root_of, ledger_of, load_home, warehouse_of
from foundry_pipeline.manifest import load_manifest

MODEL = """name: objects
inference_endpoint: http://127.0.0.1:8000/predict
requests_per_second: 5
allowed_asset_types: [image]
ontology:
  tools: [{name: Person, tool: rectangle}, {name: Bird, tool: rectangle}]
inference_params_json_schema:
  properties:
    confidence: {type: number, default: 0.25, maximum: 1}
    prompt: {type: string}
  required: [confidence]
"""
DATASET = "media_type: image\nsource: ../pictures/*.jpg\n"
RUN = "model: objects\ndataset: street\n"
SOUND = {
    "models/objects.yaml": MODEL,
    "datasets/street.yaml": DATASET,
    "runs/street_objects.yaml": RUN,
    "pictures/a.jpg": "",
}


def home(root: Path, files: dict[str, str], environ: dict[str, str] | None = None) -> Home:
    for name, content in {**SOUND, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return load_home(root, environ or {})


def told(loaded: Home) -> list[tuple[str, str]]:
    return [(problem.file, problem.path) for problem in loaded.problems]


def test_a_sound_home_has_models_datasets_and_runs_and_nothing_to_say(tmp_path: Path):
    loaded = home(tmp_path, {})
    assert (loaded.problems, loaded.warnings) == ((), ())
    assert (list(loaded.models), list(loaded.datasets), list(loaded.runs)) == (
        ["objects"],
        ["street"],
        ["street_objects"],
    )
    run = loaded.runs["street_objects"]
    assert run.model is loaded.models["objects"]
    assert run.dataset is loaded.datasets["street"]
    assert run.inference_params == {"confidence": 0.25}
    assert (run.exports, run.schedule, run.max_failed_share, run.follow_dataset) == ((), None, 0.05, False)
    dataset = loaded.datasets["street"]
    assert (dataset.base, dataset.source) == (tmp_path / "datasets", "../pictures/*.jpg")
    assert (dataset.rows_per_slice, dataset.ground_truth, dataset.encoding) == (1000, None, "utf-8")


def test_every_key_of_a_dataset_and_a_run_lands_in_its_field(tmp_path: Path):
    dataset = DATASET + "rows_per_slice: 10\nground_truth: truth.json\nencoding: latin-1\n"
    run = (
        RUN
        + """inference_params: {confidence: 0.4, prompt: all}
ontology_mapping: {Person: pedestrian, Bird: null}
min_score: {default: 0.1, pedestrian: 0.35}
exports: [labelbox, coco]
schedule: "0 2 * * *"
max_failed_share: 0.5
follow_dataset: true
"""
    )
    files = {"datasets/street.yaml": dataset, "datasets/truth.json": "{}", "runs/street_objects.yaml": run}
    loaded = home(tmp_path, files)
    assert loaded.problems == ()
    street = loaded.datasets["street"]
    assert (street.rows_per_slice, street.ground_truth, street.encoding) == (10, "truth.json", "latin-1")
    found = loaded.runs["street_objects"]
    assert found.inference_params == {"confidence": 0.4, "prompt": "all"}
    assert found.ontology_mapping == {"Person": "pedestrian", "Bird": None}
    assert found.min_score == MinScore(0.1, {"pedestrian": 0.35})
    assert found.exports == ("labelbox", "coco")
    assert (found.schedule, found.max_failed_share, found.follow_dataset) == ("0 2 * * *", 0.5, True)


def test_a_folder_that_is_not_there_is_a_config_error(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such folder"):
        load_home(tmp_path / "nowhere", {})


def test_an_empty_folder_is_an_empty_home(tmp_path: Path):
    assert load_home(tmp_path, {}) == Home(tmp_path, {}, {}, {})


def test_problems_name_the_file_from_the_home_folder_with_line_and_place(tmp_path: Path):
    loaded = home(tmp_path, {"datasets/street.yaml": DATASET + "rows_per_slice: 0\n"})
    assert str(loaded.problems[0]).startswith("datasets/street.yaml:3: $.rows_per_slice: ")


def test_a_run_of_an_unsound_model_is_left_out_and_says_so_once(tmp_path: Path):
    files = {
        "models/objects.yaml": MODEL.replace("5", "0"),
        "datasets/street.yaml": "media_type: image\n",
        "runs/other.yaml": "model: fine\ndataset: fine\n",
        "models/fine.yaml": MODEL.replace("objects", "fine"),
        "datasets/fine.yaml": DATASET,
    }
    loaded = home(tmp_path, files)
    assert list(loaded.runs) == ["other"]
    assert told(loaded) == [
        ("models/objects.yaml", "$.requests_per_second"),
        ("datasets/street.yaml", "$.source"),
        ("runs/street_objects.yaml", "$"),
    ]
    assert "model 'objects' and dataset 'street'" in loaded.problems[2].message


def test_an_unreadable_file_costs_only_itself(tmp_path: Path):
    loaded = home(tmp_path, {"models/broken.yaml": "a: b: c", "runs/broken.yaml": "", "datasets/broken.yaml": "[]"})
    assert list(loaded.runs) == ["street_objects"]
    assert told(loaded) == [("models/broken.yaml", "$"), ("datasets/broken.yaml", "$"), ("runs/broken.yaml", "$")]


@pytest.mark.parametrize("reference", ["My Objects!", "my_objects", "detector"])
def test_a_run_names_its_model_by_name_key_or_files_stem(tmp_path: Path, reference: str):
    files = {
        "models/detector.yaml": MODEL.replace("name: objects", 'name: "My Objects!"'),
        "runs/named.yaml": f'model: "{reference}"\ndataset: street\n',
    }
    loaded = home(tmp_path, files)
    assert loaded.problems == ()
    assert loaded.runs["named"].model.key == "my_objects"
    assert [(warning.file, warning.path) for warning in loaded.warnings] == [("models/detector.yaml", "$.name")]


def test_two_models_of_one_key_are_a_problem_that_names_both(tmp_path: Path):
    loaded = home(tmp_path, {"models/twin.yaml": MODEL.replace("name: objects", "name: Objects")})
    assert told(loaded) == [("models/twin.yaml", "$.name")]
    assert "models/objects.yaml" in loaded.problems[0].message
    assert list(loaded.models) == ["objects"] and list(loaded.runs) == ["street_objects"]


@pytest.mark.parametrize("stem", ["street-2", "2street", "a b", "stra\u00dfe", "x" * 101, "_x"])
@pytest.mark.parametrize("folder", ["datasets", "runs"])
def test_a_name_that_can_be_no_asset_key_and_folder_is_refused(tmp_path: Path, folder: str, stem: str):
    loaded = home(tmp_path, {f"{folder}/{stem}.yaml": DATASET if folder == "datasets" else RUN})
    assert told(loaded) == [(f"{folder}/{stem}.yaml", "$")]
    assert "letters, digits and underscores" in loaded.problems[0].message


def test_a_name_that_can_be_mended_is_given_a_better_one(tmp_path: Path):
    loaded = home(tmp_path, {"runs/street-2.yaml": RUN})
    assert "rename it to street_2.yaml" in loaded.problems[0].message


def test_names_that_differ_in_capitals_only_are_refused(tmp_path: Path):
    loaded = home(tmp_path, {"runs/Street_objects.yaml": RUN})
    assert [problem.file for problem in loaded.problems] == ["runs/street_objects.yaml"]


def test_a_run_and_a_dataset_may_share_a_name(tmp_path: Path):
    """Their asset keys differ: a dataset has `data_rows`, which is no table of a run."""
    assert home(tmp_path, {"runs/street.yaml": RUN}).problems == ()


def test_a_yml_file_is_not_read_and_says_so(tmp_path: Path):
    loaded = home(tmp_path, {"runs/more.yml": RUN, "runs/.hidden.yaml": "x"})
    assert loaded.problems == ()
    assert [warning.file for warning in loaded.warnings] == ["runs/more.yml"]


def test_a_file_name_that_is_not_unicode_or_not_printable_harms_nobody(tmp_path: Path):
    home(tmp_path, {})
    for name in (b"models/\xff.yaml", b"runs/\xff.yaml", b"datasets/a\n\x1b[2J.yaml"):
        (tmp_path / os.fsdecode(name)).write_text("x: 1\n")
    loaded = load_home(tmp_path, {})
    assert list(loaded.runs) == ["street_objects"]
    assert len({problem.file for problem in loaded.problems}) == 3
    assert all(str(problem).isprintable() for problem in loaded.problems)


def test_a_link_to_nothing_is_a_problem(tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "gone.yaml").symlink_to(tmp_path / "nowhere")
    assert ("models/gone.yaml", "$") in told(home(tmp_path, {}))


@pytest.mark.parametrize(
    ("lines", "path", "says"),
    [
        ("source: ../pictures/*.jpg", "$.media_type", "missing"),
        ("media_type: picture\nsource: ../pictures", "$.media_type", "expected one of"),
        ("media_type: image", "$.source", "missing"),
        ("media_type: image\nsource: ../pictures/*.png", "$.source", "no file matches"),
        ("media_type: image\nsource: pictures/*.jpg", "$.source", "did you mean '../pictures/*.jpg'"),
        ("media_type: image\nsource: pictures", "$.source", "did you mean '../pictures'"),
        ("media_type: image\nsource: rows.csv", "$.source", "no file or folder"),
        ("media_type: image\nsource: https://h/rows.csv", "$.source", "URLs of data rows stand in"),
        ("media_type: image\nsource: s3://bucket/*.jpg", "$.source", "expected a path"),
        ("media_type: image\nsource: ~/pictures", "$.source", "~"),
        ("media_type: image\nsource: /", "$.source", "allow_folders"),
        (f"media_type: image\nsource: {'x' * 300}", "$.source", "no file or folder"),
        ('media_type: image\nsource: ""', "$.source", "empty"),
        (DATASET + "rows_per_slice: 100001", "$.rows_per_slice", "from 1 to 100000"),
        (DATASET + "rows_per_slice: true", "$.rows_per_slice", "boolean"),
        (DATASET + "ground_truth: truth.json", "$.ground_truth", "there is no file"),
        (DATASET + "ground_truth: pictures/a.jpg", "$.ground_truth", "did you mean '../pictures/a.jpg'"),
        (DATASET + "ground_truth: ../pictures", "$.ground_truth", "is a folder"),
        (DATASET + "encoding: utf-9", "$.encoding", "'utf-9'"),
        (DATASET + "encoding: hex", "$.encoding", "text encoding"),
        (DATASET + "slice: 3", "$.slice", "unknown key"),
    ],
)
def test_a_dataset_that_cannot_be_meant_is_one_problem_at_its_place(tmp_path: Path, lines: str, path: str, says: str):
    loaded = home(tmp_path, {"datasets/wrong.yaml": lines + "\n"})
    assert told(loaded) == [("datasets/wrong.yaml", path)]
    assert says in loaded.problems[0].message
    assert list(loaded.datasets) == ["street"]


@pytest.mark.parametrize("source", ["../pictures", "../pictures/a.jpg", "../**/*.jpg", "../pictures/[a].jpg"])
def test_a_folder_a_file_and_a_glob_are_sources(tmp_path: Path, source: str):
    assert home(tmp_path, {"datasets/street.yaml": f"media_type: IMAGE\nsource: {source}\n"}).problems == ()


def test_a_source_outside_the_home_needs_the_deployments_word(tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.jpg").touch()
    root = tmp_path / "home"
    files = {"datasets/street.yaml": f"media_type: image\nsource: {outside}/*.jpg\n"}
    assert told(home(root, files))[0] == ("datasets/street.yaml", "$.source")
    allowed = home(root, {**files, "foundry.yaml": "allow_folders: [../outside]\n"})
    assert allowed.problems == ()
    assert allowed.settings.allow_folders == (outside,)


def test_a_source_behind_a_link_is_judged_as_its_rows_will_be(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "home"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    loaded = home(root, {"datasets/street.yaml": "media_type: image\nsource: ../linked\n"})
    assert told(loaded)[0] == ("datasets/street.yaml", "$.source")


@pytest.mark.parametrize(
    ("lines", "path", "says"),
    [
        ("dataset: street", "$.model", "missing"),
        ("model: objcts\ndataset: street", "$.model", "did you mean 'objects'"),
        ("model: zzz\ndataset: street", "$.model", "there is objects"),
        ("model: objects\ndataset: steet", "$.dataset", "did you mean 'street'"),
        ("model: objects\ndataset: words", "$.dataset", "takes image"),
        (RUN + "inference_params: {confidence: 2}", "$.inference_params.confidence", "maximum of 1"),
        (RUN + "inference_params: {confidense: 0.2}", "$.inference_params.confidense", "did you mean 'confidence'"),
        (RUN + "inference_params: [1]", "$.inference_params", "a list"),
        (RUN + "ontology_mapping: {person: x}", "$.ontology_mapping.person", "did you mean 'Person'"),
        (RUN + "ontology_mapping: {Person: 1}", "$.ontology_mapping.Person", "quote it"),
        (RUN + "ontology_mapping: [Person]", "$.ontology_mapping", "a list"),
        (RUN + "min_score: 1.5", "$.min_score", "from 0 to 1"),
        (RUN + "min_score: {Person: -0.1}", "$.min_score.Person", "from 0 to 1"),
        (RUN + "min_score: {Persn: 0.1}", "$.min_score.Persn", "did you mean 'Person'"),
        (
            RUN + "ontology_mapping: {Person: walker}\nmin_score: {Person: 0.1}",
            "$.min_score.Person",
            "after the mapping",
        ),
        (RUN + "exports: [labelbx]", "$.exports[0]", "did you mean 'labelbox'"),
        (RUN + "exports: [coco, coco]", "$.exports[1]", "twice"),
        (RUN + "exports: coco", "$.exports", "list"),
        (RUN + "schedule: '0 2 * *'", "$.schedule", "five fields"),
        (RUN + "max_failed_share: 5", "$.max_failed_share", "from 0 to 1"),
        (RUN + "follow_dataset: maybe", "$.follow_dataset", "true or false"),
        (RUN + "budget: 25", "$.budget", "needs `cost_per_call` in models/objects.yaml"),
        (RUN + "budget: -1", "$.budget", "from 0 to"),
        (RUN + "exprts: [coco]", "$.exprts", "did you mean 'exports'"),
    ],
)
def test_a_run_that_cannot_be_meant_is_one_problem_at_its_place(tmp_path: Path, lines: str, path: str, says: str):
    text = "media_type: text\nsource: ../pictures\n"
    loaded = home(tmp_path, {"runs/wrong.yaml": lines + "\n", "datasets/words.yaml": text})
    assert told(loaded) == [("runs/wrong.yaml", path)]
    assert says in loaded.problems[0].message
    assert list(loaded.runs) == ["street_objects"]


def test_F080_a_required_parameter_that_the_run_leaves_out_is_a_problem_of_the_run(tmp_path: Path):
    model = MODEL.replace("required: [confidence]", "required: [prompt]")
    loaded = home(tmp_path, {"models/objects.yaml": model})
    assert [str(problem) for problem in loaded.problems] == [
        "runs/street_objects.yaml:1: $.inference_params.prompt: the model requires a value for 'prompt', and its"
        " schema has no default"
    ]


def test_a_model_without_ontology_takes_any_mapping_and_threshold(tmp_path: Path):
    model = "name: objects\ninference_endpoint: http://h/x\nrequests_per_second: 1\n"
    run = RUN + "ontology_mapping: {a: b}\nmin_score: {c: 0.1}\n"
    loaded = home(tmp_path, {"models/objects.yaml": model, "runs/street_objects.yaml": run})
    assert loaded.problems == ()


@pytest.mark.parametrize(
    ("price", "budget", "expected"),
    [
        ("0.002", "25", Money(Decimal(25))),
        ("0.002", "{amount: 25, currency: USD}", Money(Decimal(25), "USD")),
        ("{amount: 0.002, currency: USD}", "25.5", Money(Decimal("25.5"))),
        ("{amount: 0.002, currency: USD}", "{amount: 25, currency: USD}", Money(Decimal(25), "USD")),
    ],
)
def test_a_budget_is_in_the_currency_of_the_models_price(tmp_path: Path, price: str, budget: str, expected: Money):
    model, run = MODEL + f"cost_per_call: {price}\n", RUN + f"budget: {budget}\n"
    loaded = home(tmp_path, {"models/objects.yaml": model, "runs/street_objects.yaml": run})
    assert loaded.problems == ()
    assert loaded.runs["street_objects"].budget == expected


def test_a_budget_in_another_currency_is_a_problem(tmp_path: Path):
    model = MODEL + "cost_per_call: {amount: 0.002, currency: USD}\n"
    run = RUN + "budget: {amount: 25, currency: EUR}\n"
    loaded = home(tmp_path, {"models/objects.yaml": model, "runs/street_objects.yaml": run})
    assert told(loaded) == [("runs/street_objects.yaml", "$.budget")]
    assert "USD; got EUR" in loaded.problems[0].message


def test_one_number_is_the_threshold_of_every_feature(tmp_path: Path):
    loaded = home(tmp_path, {"runs/street_objects.yaml": RUN + "min_score: 0.5\n"})
    assert loaded.runs["street_objects"].min_score == MinScore(0.5)


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_export_format_there_is_can_be_named(tmp_path: Path, name: str):
    loaded = home(tmp_path, {"runs/street_objects.yaml": RUN + f"exports: [{name}]\n"})
    assert loaded.runs["street_objects"].exports == (name,)


def test_a_format_that_has_no_place_for_the_data_rows_warns(tmp_path: Path):
    """It would be written empty, with every prediction lost."""
    loaded = home(tmp_path, {"runs/street_objects.yaml": RUN + "exports: [coco, spacy]\n"})
    (warning,) = loaded.warnings
    assert warning.path == "$.exports[1]"
    assert warning.message == "spacy has no place for image data rows; it takes conversational, text"
    assert "street_objects" in loaded.runs


@pytest.mark.parametrize(("text", "keep"), [("", True), ("keep_empty: false\n", False)])
def test_rows_in_which_nothing_was_found_are_exported_unless_the_run_says_otherwise(
    tmp_path: Path, text: str, keep: bool
):
    loaded = home(tmp_path, {"runs/street_objects.yaml": RUN + text})
    assert loaded.runs["street_objects"].keep_empty is keep


def test_foundry_yaml_sets_what_the_deployment_allows(tmp_path: Path):
    (tmp_path / "more").mkdir()
    text = """allow_private_hosts: [Images.internal, 10.0.0.0/8, "::1", 127.0.0.1]
allow_folders: [more]
secret_hosts: {KEY: [127.0.0.1, "models.example.com:8443", "[::1]:80"]}
max_row_bytes: 1000
max_row_pixels: 2000
max_reply_bytes: 3000
row_timeout_s: 1.5
"""
    loaded = home(tmp_path, {"foundry.yaml": text})
    assert (loaded.problems, loaded.warnings) == ((), ())
    hosts = {"KEY": ("127.0.0.1", "models.example.com:8443", "[::1]:80")}
    private = ("images.internal", "10.0.0.0/8", "::1", "127.0.0.1")
    assert loaded.settings == Settings(private, (tmp_path / "more",), hosts, 1000, 2000, 3000, 1.5)


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_foundry_yaml_changes_nothing(tmp_path: Path, text: str):
    loaded = home(tmp_path, {"foundry.yaml": text})
    assert loaded.problems == ()
    assert loaded.settings == Settings()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("allow_private_host: [a]", "$.allow_private_host"),
        ("allow_private_hosts: a", "$.allow_private_hosts"),
        ("allow_private_hosts: ['http://a']", "$.allow_private_hosts[0]"),
        ("allow_private_hosts: [10.0.0.1/8]", "$.allow_private_hosts[0]"),
        ("allow_private_hosts: [1.2.3]", "$.allow_private_hosts[0]"),
        ("allow_private_hosts: ['*']", "$.allow_private_hosts[0]"),
        ("allow_folders: [~/x]", "$.allow_folders[0]"),
        ("secret_hosts: {env:KEY: [a]}", "$.secret_hosts['env:KEY']"),
        ("secret_hosts: {KEY: a}", "$.secret_hosts.KEY"),
        ("secret_hosts: {KEY: ['https://a/']}", "$.secret_hosts.KEY[0]"),
        ("secret_hosts: {KEY: ['a:99999']}", "$.secret_hosts.KEY[0]"),
        ("max_row_bytes: 64MB", "$.max_row_bytes"),
        ("row_timeout_s: 0", "$.row_timeout_s"),
    ],
)
def test_no_run_is_offered_while_foundry_yaml_is_unsound(tmp_path: Path, text: str, path: str):
    """What it forbids is not known, and a run without those rules may send a secret anywhere."""
    loaded = home(tmp_path, {"foundry.yaml": text + "\n"})
    assert told(loaded) == [("foundry.yaml", "$"), ("foundry.yaml", path)]
    assert (loaded.runs, loaded.settings) == ({}, Settings())
    assert list(loaded.models) == ["objects"]


def test_a_foundry_yml_is_not_overlooked(tmp_path: Path):
    loaded = home(tmp_path, {"foundry.yml": "secret_hosts: {}"})
    assert told(loaded) == [("foundry.yml", "$")]
    assert loaded.runs == {}


def test_a_secret_may_only_be_sent_where_foundry_yaml_lets_it(tmp_path: Path):
    files = {
        "models/objects.yaml": MODEL + "secrets: env:KEY\n",
        "foundry.yaml": "secret_hosts: {KEY: [models.example.com]}\n",
    }
    loaded = home(tmp_path, files, {"KEY": "sesame"})
    assert told(loaded)[0] == ("models/objects.yaml", "$.inference_endpoint")
    assert loaded.problems[0].line == 2
    assert loaded.runs == {}
    files["foundry.yaml"] = "secret_hosts: {KEY: [127.0.0.1]}\n"
    assert home(tmp_path, files, {"KEY": "sesame"}).problems == ()


def test_a_literal_secret_is_a_warning_of_the_home_that_does_not_show_it(tmp_path: Path):
    loaded = home(tmp_path, {"models/objects.yaml": MODEL + "secrets: sesame-1\n"})
    assert loaded.problems == ()
    (warning,) = loaded.warnings
    assert (warning.file, warning.line, warning.path) == ("models/objects.yaml", 12, "$.secrets")
    assert "sesame" not in repr(loaded)


def test_the_homes_model_is_the_one_its_file_gives_alone(tmp_path: Path):
    loaded = home(tmp_path, {})
    alone = load_manifest(tmp_path / "models/objects.yaml", {})
    assert (alone.ontology, alone.params_schema) == (
        loaded.models["objects"].ontology,
        loaded.models["objects"].params_schema,
    )


def test_the_home_is_the_arguments_else_the_environments_else_the_default(tmp_path: Path):
    assert home_root_of("a", {"FOUNDRY_HOME": "b"}, "c") == Path("a").absolute()
    assert home_root_of(None, {"FOUNDRY_HOME": "b"}, "c") == Path("b").absolute()
    assert home_root_of(None, {"FOUNDRY_HOME": ""}, "c") == Path("c").absolute()


def test_warehouse_and_ledger_are_in_the_home_unless_the_environment_says_otherwise(tmp_path: Path):
    assert warehouse_of(tmp_path, {}) == str(tmp_path / "warehouse")
    assert warehouse_of(tmp_path, {"FOUNDRY_WAREHOUSE": "s3://bucket/x"}) == "s3://bucket/x"
    assert ledger_of(tmp_path, {}) == str(tmp_path / "ledger")
    assert ledger_of(tmp_path, {"FOUNDRY_LEDGER": "postgresql://h/db"}) == "postgresql://h/db"

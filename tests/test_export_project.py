"""`ontology: project.json`: what an import would refuse is said before anything is written, all of it at once."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest

from foundry_pipeline.cli import main
from foundry_pipeline.config.project_source import project_ontology
from foundry_pipeline.config.yaml_source import Findings, Item
from foundry_pipeline.errors import ConfigError
from foundry_pipeline.exports import export_run
from foundry_pipeline.home import load_home
from foundry_pipeline.rows.local_files import LocalFiles
from foundry_pipeline.store import Store
from tests.home_folder import MODEL, write_file, write_run, write_texts
from tests.warehouse import fill, make_run, mask

MODEL_ONTOLOGY = """\
  classifications:
    - {name: mood, type: radio, options: [
        {value: good}, {value: bad, options: [{name: why, type: checklist, options: [{value: rude}, {value: slow}]}]}]}
  tools:
    - {name: person, tool: named-entity, classifications: [{name: role, type: text}]}
    - {name: Firm, tool: named-entity}
"""


def schema_id(name):
    return f"c{name:_<24}"[:25]


def question(name, kind, options=(), **more):
    listed = [
        {
            "label": f"{value} (label)",
            "value": value,
            "featureSchemaId": schema_id(f"o{value}"),
            "options": list(nested),
        }
        for value, *nested in options
    ]
    ids = {"schemaNodeId": None, "featureSchemaId": schema_id(f"q{name}")}
    return {"name": name, "instructions": f"{name}?", "type": kind, "options": listed, **ids, **more}


def tool(name, kind, questions=()):
    ids = {"schemaNodeId": None, "featureSchemaId": schema_id(f"t{name}")}
    return {"name": name, "tool": kind, "color": "#ff0000", "classifications": list(questions), **ids}


WHY = question("why", "checklist", [("rude",), ("slow",)])
FITTING = {
    "classifications": [question("mood", "radio", [("good",), ("bad", WHY)], scope="global")],
    "tools": [tool("person", "named-entity", [question("role", "text")]), tool("company", "named-entity")],
}
MAPPING = "ontology_mapping: {Firm: company}\nexports: [labelbox]\nontology: project.json\n"


def write_home(root, project, more=MAPPING):
    text = MODEL.format(name="reader", url="http://127.0.0.1:1/", media="text", kind="radio", features=MODEL_ONTOLOGY)
    kinds = "[radio, checklist, text, named-entity]"
    write_file(root / "models/reader.yaml", text.replace("[radio]", kinds))
    write_texts(root, ["Tom works at IBM"])
    write_run(root, "read", "reader", "notes", more)
    write_file(root / "runs/project.json", project if isinstance(project, str) else json.dumps(project))
    return root


def problems(root):
    return [str(problem) for problem in load_home(root, {}).problems]


def read_project(tmp_path, project):
    write_file(tmp_path / "project.json", json.dumps(project))
    found = Findings("runs/run.yaml")
    item = Item("project.json", "$.ontology", 1, "project.json")
    read = project_ontology(tmp_path, LocalFiles(tmp_path))(item, found)
    assert not found.problems
    return read


def test_a_project_in_which_everything_has_its_place_is_no_problem(tmp_path):
    home = load_home(write_home(tmp_path, FITTING), {})
    assert (home.problems, home.warnings) == ((), ())
    assert list(home.runs["read"].project.tools) == ["person", "company"]


@pytest.mark.parametrize(
    "wrap", [lambda o: {"name": "P", "normalized": o}, lambda o: o | {"media_type": "TEXT", "x": 1}]
)
def test_an_ontology_is_read_as_the_api_hands_it_out(tmp_path, wrap):
    assert problems(write_home(tmp_path, wrap(FITTING))) == []


def test_everything_that_is_missing_is_named_at_once_with_what_may_be_meant(tmp_path, capsys):
    why = question("why", "radio", [("rude",)])
    project = {
        "classifications": [question("mood", "radio", [("goood",), ("bad", why)])],
        "tools": [tool("persn", "named-entity"), tool("company", "rectangle")],
    }
    assert main(["check", "--home", str(write_home(tmp_path, project))]) == 1
    *lines, _ = capsys.readouterr().out.splitlines()
    begin = "problem: runs/read.yaml:5: $.ontology: project.json: "
    assert lines == [
        f"{begin}there is no tool 'person' (named-entity) (did you mean 'persn'?)",
        f"{begin}the tool 'company' is for rectangle, not for named-entity",
        f"{begin}the question 'mood' has no option 'good' (did you mean 'goood'?)",
        f"{begin}question 'mood': option 'bad': the question 'why' is radio, not checklist",
    ]


def test_nested_questions_and_options_are_looked_for_where_they_would_stand(tmp_path):
    """`why` is there, but under another option; `role` is there, but under no tool."""
    project = {
        "classifications": [question("mood", "radio", [("good", WHY), ("bad",)]), question("role", "text")],
        "tools": [tool("person", "named-entity"), tool("company", "named-entity")],
    }
    assert [line.partition("project.json: ")[2] for line in problems(write_home(tmp_path, project))] == [
        "tool 'person': there is no question 'role' (text); there is none",
        "question 'mood': option 'bad': there is no question 'why' (checklist); there is none",
    ]


def test_an_option_goes_by_its_value_not_by_its_label(tmp_path):
    project = json.loads(json.dumps(FITTING).replace('"value": "good"', '"value": "fine"'))
    project["classifications"][0]["options"][0]["label"] = "good"
    (line,) = problems(write_home(tmp_path, project))
    assert line.endswith("the question 'mood' has no option 'good'; it is the label of the value 'fine'")


def test_what_the_run_leaves_out_needs_no_place(tmp_path):
    more = "ontology_mapping: {Firm: null, person: null, why: null}\nontology: project.json\n"
    assert problems(write_home(tmp_path, FITTING | {"tools": []}, more)) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "project.json: not JSON: "),
        ("[1]", "project.json: expected an ontology: an object with tools and classifications"),
        ('{"name": "x"}', "project.json: expected an ontology"),
        ('{"tools": {}}', "project.json: $.tools: expected a list; got {}"),
        ('{"tools": [5]}', "project.json: $.tools[0]: expected an object; got 5"),
        ('{"tools": [{"name": "a"}]}', "project.json: $.tools[0].tool: expected text; got None"),
        (
            '{"classifications": [{"name": "a", "type": "radio", "options": [{"value": 1}]}]}',
            "options[0].value: expected",
        ),
        ('{"tools": [{"name": "a", "tool": "x"}, {"name": "a", "tool": "y"}]}', "$.tools[1]: 'a' stands twice"),
        ('{"tools": ' + "[" * 900 + "]" * 900 + "}", "$.tools[0]: expected an object"),
    ],
)
def test_what_is_no_ontology_is_refused_with_its_place(tmp_path, content, message):
    assert any(message in line for line in problems(write_home(tmp_path, content)))


def test_nesting_without_end_is_a_problem_and_no_crash(tmp_path):
    nested = question("q", "radio", [("a",)])
    for _ in range(60):
        nested = question("q", "radio", [("a", nested)])
    assert any(
        "nested deeper than 20" in line for line in problems(write_home(tmp_path, {"classifications": [nested]}))
    )


def test_a_project_file_that_is_not_there_or_outside_is_refused(tmp_path):
    write_home(tmp_path / "home", FITTING, "ontology: other.json\n")
    assert "other.json': no such file" in problems(tmp_path / "home")[0]
    write_file(tmp_path / "project.json", json.dumps(FITTING))
    write_home(tmp_path / "home", FITTING, "ontology: ../../project.json\n")
    assert "outside the home folder" in problems(tmp_path / "home")[0]


def test_ids_that_an_import_would_refuse_are_warned_of_and_not_written(tmp_path):
    project = json.loads(json.dumps(FITTING).replace(schema_id("tcompany"), "short"))
    home = load_home(write_home(tmp_path, project), {})
    assert home.problems == ()
    assert "1 schema ids have not 25 characters and are not written, such as 'short'" in str(home.warnings[0])
    assert home.runs["read"].project.tools["company"].schema_id is None


def answered(tmp_path, project, media_type="text", **tables):
    """The lines of an export into the project, of a model without an ontology."""
    run = make_run(media_type=media_type)
    run = dataclasses.replace(run, project=None if project is None else read_project(tmp_path, project))
    sizes = {"width": 60, "height": 40}
    fill(Store(tmp_path / "w"), run, "0", data_rows=[{"global_key": "g", "row_data": "Tom works"} | sizes], **tables)
    export_run(run, Store(tmp_path / "w"), "labelbox")
    file = tmp_path / "w/annotations/run=run/labelbox/annotations-00001.ndjson"
    return [json.loads(line) for line in file.read_text().splitlines()]


AT = {"global_key": "g"}
TEXTS = {
    "entities": [AT | {"feature": "person", "start": 0, "end": 3, "prediction_id": "e"}],
    "classifications": [
        AT | {"feature": "mood", "answer": "bad", "prediction_id": "m"},
        AT | {"feature": "why", "kind": "checklist", "answer": "rude", "parent_id": "m", "prediction_id": "w"},
        AT | {"feature": "why", "kind": "checklist", "answer": "slow", "parent_id": "m", "prediction_id": "x"},
    ],
    "texts": [AT | {"feature": "role", "answer": "clerk", "parent_id": "e", "prediction_id": "r"}],
}


def test_lines_name_everything_by_its_schema_id_too(tmp_path):
    entity, mood = answered(tmp_path, FITTING, **TEXTS)
    assert list(entity)[:4] == ["uuid", "dataRow", "name", "schemaId"]
    assert (entity["name"], entity["schemaId"]) == ("person", schema_id("tperson"))
    assert entity["classifications"] == [{"name": "role", "schemaId": schema_id("qrole"), "answer": "clerk"}]
    assert mood["schemaId"] == schema_id("qmood")
    chosen = [{"name": value, "schemaId": schema_id(f"o{value}")} for value in ("rude", "slow")]
    why = {"name": "why", "schemaId": schema_id("qwhy"), "answer": chosen}
    assert mood["answer"] == {"name": "bad", "schemaId": schema_id("obad"), "classifications": [why]}


def test_the_sdk_takes_lines_with_both_names_and_schema_ids(tmp_path):
    pytest.importorskip("labelbox", reason="its SDK needs a Python below 3.14")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from labelbox.data.serialization.ndjson.label import NDLabel
    for line in answered(tmp_path, FITTING, **TEXTS):
        read = NDLabel(annotations=line).annotations
        assert (read.name, read.schema_id) == (line["name"], line["schemaId"])


def test_objects_of_every_kind_need_a_tool_of_theirs(tmp_path):
    corners = [{"x": 1.0, "y": 1.0}, {"x": 9.0, "y": 1.0}, {"x": 9.0, "y": 9.0}]
    tables = {
        "boxes": [AT | {"feature": "car", "left": 1.0, "top": 2.0, "width": 3.0, "height": 4.0, "prediction_id": "b"}],
        "masks": [mask("g", "lake", [[1] * 60] * 40, prediction_id="m")],
        "polygons": [AT | {"feature": "field", "points": corners}],
        "lines": [AT | {"feature": "lane", "points": corners}],
        "points": [AT | {"feature": "nose", "x": 1.0, "y": 1.0}],
        "edges": [AT | {"feature": "near", "source_id": "b", "target_id": "m"}],
    }
    kinds = {
        "car": "rectangle",
        "lake": "superpixel",
        "field": "polygon",
        "lane": "line",
        "nose": "point",
        "near": "edge",
    }
    lines = answered(tmp_path, {"tools": [tool(*one) for one in kinds.items()]}, "image", **tables)
    assert {line["name"]: line["schemaId"] for line in lines} == {name: schema_id(f"t{name}") for name in kinds}
    with pytest.raises(ConfigError) as caught:
        answered(tmp_path, {"tools": [tool(name, "message-ranking") for name in kinds]}, "image", **tables)
    assert len(caught.value.problems) == len(kinds)


def test_what_an_open_model_says_is_looked_for_before_a_file_is_in_its_place_all_of_it(tmp_path):
    before = answered(tmp_path, FITTING, **TEXTS)
    said = [
        {"feature": "mood", "answer": "grim"},
        {"feature": "age", "answer": "old"},
        {"feature": "mood", "answer": "sad"},
    ]
    tables = TEXTS | {"classifications": [AT | one | {"prediction_id": str(at)} for at, one in enumerate(said)]}
    with pytest.raises(ConfigError) as caught:
        answered(tmp_path, FITTING, **tables)
    assert [str(problem) for problem in caught.value.problems] == [
        f"runs/run.yaml: $.ontology: project.json: {fault}"
        for fault in (
            "the question 'mood' has no option 'grim'; there is 'good', 'bad'",
            "the question 'mood' has no option 'sad' (did you mean 'bad'?)",
            "there is no question 'age' (radio); there is 'mood'",
        )
    ]
    file = tmp_path / "w/annotations/run=run/labelbox/annotations-00001.ndjson"
    assert [json.loads(line) for line in file.read_text().splitlines()] == before


def test_it_is_refused_again_where_no_slice_has_changed(tmp_path):
    for _ in range(2):
        with pytest.raises(ConfigError, match="there is no question 'why'"):
            answered(tmp_path, FITTING | {"classifications": [question("mood", "radio", [("bad",)])]}, **TEXTS)


def test_another_project_file_shows_in_lines_that_were_kept(tmp_path):
    assert "schemaId" not in answered(tmp_path, None, **TEXTS)[0]
    run = dataclasses.replace(make_run(media_type="text"), project=read_project(tmp_path, FITTING))
    export_run(run, Store(tmp_path / "w"), "labelbox")
    file = tmp_path / "w/annotations/run=run/labelbox/annotations-00001.ndjson"
    assert json.loads(file.read_text().splitlines()[0])["schemaId"] == schema_id("tperson")


@pytest.mark.parametrize(("scope", "frame"), [("global", 3), ("index", None)])
def test_a_question_about_the_whole_video_is_not_answered_for_a_frame_nor_the_other_way_round(tmp_path, scope, frame):
    project = {"classifications": [question("mood", "radio", [("bad",)], scope=scope)]}
    said = [AT | {"feature": "mood", "answer": "bad", "frame": frame}]
    with pytest.raises(ConfigError, match=f"the question 'mood' has the scope {scope}"):
        answered(tmp_path, project, "video", classifications=said)


def test_objects_of_videos_and_their_nested_answers_have_their_place(tmp_path):
    project = {"tools": [tool("car", "rectangle", [question("colour", "radio", [("red",)])]), tool("lake", "polygon")]}
    box = AT | {
        "feature": "car",
        "left": 1.0,
        "top": 2.0,
        "width": 3.0,
        "height": 4.0,
        "frame": 2,
        "prediction_id": "b",
    }
    colour = AT | {"feature": "colour", "answer": "red", "parent_id": "b", "frame": 2}
    (line,) = answered(tmp_path, project, "video", boxes=[box], classifications=[colour])
    (key_frame,) = line["segments"][0]["keyframes"]
    assert key_frame["classifications"][0]["schemaId"] == schema_id("qcolour")
    with pytest.raises(ConfigError, match="the tool 'lake' is for polygon, not for raster-segmentation"):
        answered(tmp_path, project, "video", masks=[mask("g", "lake", [[1] * 60] * 40, frame=2)])

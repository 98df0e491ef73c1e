"""What holds the repository together: the direction of imports, and the code location from wherever it is loaded."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
LAYERS = ("foundry_pipeline", "resources", "assets")
OUTSIDE = {"demo", "benchmarks", "tests"}


def sources(package: str) -> list[Path]:
    return sorted((CHECKOUT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every import in a file, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("foundry_pipeline", {"dagster", "resources", "assets", *OUTSIDE}),
        ("resources", {"assets", *OUTSIDE}),
        ("assets", OUTSIDE),
    ],
)
def test_imports_point_one_way(package: str, forbidden: set[str]) -> None:
    assert sources(package)
    wrong = {path.name: bad for path in sources(package) if (bad := forbidden & set(imported(path)))}
    assert wrong == {}


def test_the_layers_are_used_in_the_other_direction() -> None:
    assert any("resources" in set(imported(path)) for path in sources("assets"))
    assert any("foundry_pipeline" in set(imported(path)) for path in sources("resources"))


NO_DAGSTER = """
import importlib, pkgutil, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"dagster", "dagster_shared", "resources", "assets"}:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
import foundry_pipeline
names = [found.name for found in pkgutil.walk_packages(foundry_pipeline.__path__, "foundry_pipeline.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_the_domain_imports_without_dagster() -> None:
    done = subprocess.run([sys.executable, "-c", NO_DAGSTER], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_the_domain_reads_no_environment_but_in_its_command_line() -> None:
    readers = {
        path.name
        for path in sources("foundry_pipeline")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "environb"}
        if isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    assert readers <= {"cli.py"}


def test_assets_have_their_annotations_as_objects() -> None:
    """Dagster looks at the annotation of `context`; as a string it refuses it."""
    late = [path.name for path in sources("assets") if "annotations" in future_imports(path)]
    assert late == []


def future_imports(path: Path) -> set[str]:
    return {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
        for alias in node.names
    }


def test_the_wheel_ships_the_domain_alone() -> None:
    import tomllib

    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["foundry_pipeline"]


LOADED = """
import json, sys
from dagster import Definitions
from dagster._core.code_pointer import FileCodePointer
defs = FileCodePointer(sys.argv[1], "defs", sys.argv[2]).load_target()
Definitions.validate_loadable(defs)
print(json.dumps(sorted(spec.key.to_user_string() for spec in defs.resolve_all_asset_specs())))
"""


def test_the_demos_code_location_loads_from_another_directory_with_these_assets(tmp_path: Path) -> None:
    """`fixtures/demo_assets.json` is the graph: a change of it shows in review."""
    import json

    environ = {key: value for key, value in os.environ.items() if not key.startswith("FOUNDRY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(CHECKOUT / "assets/definitions.py"), str(CHECKOUT)],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = json.loads((CHECKOUT / "tests/fixtures/demo_assets.json").read_text())
    assert json.loads(done.stdout) == expected


def test_the_workspace_finds_the_code_location_relative_to_itself() -> None:
    import yaml

    workspace = yaml.safe_load((CHECKOUT / "workspace.yaml").read_text())
    [location] = workspace["load_from"]
    assert location == {
        "python_file": {
            "relative_path": "assets/definitions.py",
            "working_directory": ".",
            "location_name": "foundry_pipeline",
        }
    }


def test_the_dagster_yaml_we_hand_out_is_one_that_dagster_takes(tmp_path: Path) -> None:
    import dagster as dg

    from assets.instance import prepare_dagster_home

    prepare_dagster_home(tmp_path / "new")
    with dg.DagsterInstance.from_config(str(tmp_path / "new")) as instance:
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 4  # type: ignore[union-attr]
        assert instance.run_monitoring_enabled
        assert not instance.telemetry_enabled


def test_a_dagster_yaml_that_is_there_is_left_alone(tmp_path: Path) -> None:
    from assets.instance import prepare_dagster_home

    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    prepare_dagster_home(tmp_path)
    assert (tmp_path / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"

"""What is shipped, what it depends on, and which part may import which."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import eqxformer
from eqxformer.training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "eqxformer"

# A package imports only from those above it.
ORDER = [
    "__about__",
    "checks",
    "axes",
    "keys",
    "strict_json",
    "config",
    "constraints",
    "traces",
    "layers",
    "blocks",
    "models",
    "checkpoints",
    "architectures",
    "sharding",
    "pretrained",
    "adapters",
    "inspect",
    "generation",
    "text",
    "data",
    "losses",
    "optimizers",
    "training",
    "tour",
    "bench",
    "cli",
    "__main__",
]

# Modules of the extras, and of base dependencies that a first import has no need of.
LATER = [
    *("click", "filelock", "grain", "huggingface_hub", "jinja2", "matplotlib", "optax"),
    *(
        "orbax",
        "outlines_core",
        "rich",
        "sacrebleu",
        "safetensors",
        "tensorboardX",
        "tokenizers",
        "torch",
        "transformers",
    ),
    "wandb",
]
EXTRAS = [name for name in LATER if name != "optax"]


def modules():
    """Every module of the package as (name below eqxformer, its syntax tree)."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), ast.parse(file.read_text(), str(file))


def imported(tree):
    """The names below eqxformer that a module imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = node.module == "eqxformer"
            names = [f"eqxformer.{a.name}" for a in node.names] if inside else [node.module or "."]
        else:
            continue
        yield from (n.removeprefix("eqxformer.") for n in names if n.startswith("eqxformer"))


def python(source, **environment):
    """What a fresh Python prints for `source`."""
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "EQXFORMER_CHECKS": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_two_rooms_offer_another_thing_by_one_name():
    offered = {}
    for room in eqxformer._ROOMS:
        module = importlib.import_module(f"eqxformer.{room}")
        for name in module.__all__:
            assert offered.setdefault(name, getattr(module, name)) is getattr(module, name), name


def test_a_package_imports_only_from_packages_above_it():
    for name, tree in modules():
        here = name.partition(".")[0]
        if name == "__init__":
            continue
        assert here in ORDER, f"Say in ORDER where eqxformer.{here} belongs."
        for other in imported(tree):
            there = other.partition(".")[0]
            assert there in ORDER, f"eqxformer.{name} takes `{other}` from eqxformer, not its part."
            assert ORDER.index(there) <= ORDER.index(here), f"{name} imports {other}, below it."


def test_the_order_of_packages_names_what_exists_and_nothing_else():
    exists = {name.partition(".")[0] for name, _ in modules()} - {"__init__"}
    assert exists == set(ORDER)


def test_no_annotation_is_a_string_by_decree_since_shapes_are_read_at_run_time():
    for name, tree in modules():
        future = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert not any(node.module == "__future__" for node in future), name


def test_importing_eqxformer_loads_no_extra_and_no_part():
    found = python(f"import sys, eqxformer; print([n for n in {LATER} if n in sys.modules])")
    assert found == "[]\n"
    found = python("import sys, eqxformer; print('eqxformer.layers' in sys.modules)")
    assert found == "False\n"


def test_a_name_imports_no_room_that_does_not_offer_it():
    asked = "import sys, eqxformer; eqxformer.TrainState"
    rooms = "[f'eqxformer.{room}' in sys.modules for room in ('adapters', 'generation')]"
    assert python(f"{asked}; print({rooms})") == "[False, False]\n"


def test_a_config_of_any_part_is_read_where_none_has_been_imported():
    texts = [eqxformer.AdamW().to_json(), eqxformer.LoRA(rank=2).to_json()]
    texts.append(RECIPES["rot13"].prepare(None).experiment.to_json())
    source = f"""
import eqxformer
assert not eqxformer.Config.registry
for text in {texts}:
    print(eqxformer.Config.from_json(text).type_name)
"""
    assert python(source).split() == ["AdamW", "LoRA", "Rot13Experiment"]


def test_every_public_name_is_there_without_the_extras():
    source = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None  # what is not installed
import eqxformer
missing = [name for name in dir(eqxformer) if getattr(eqxformer, name, None) is None]
print(missing)
"""
    assert python(source) == "[]\n"


def test_this_suite_runs_under_the_shape_contracts():
    if os.environ["EQXFORMER_CHECKS"] != "1":
        pytest.skip("turned off by EQXFORMER_CHECKS")
    assert hasattr(eqxformer.Linear.__call__, "__wrapped__")


def test_the_version_is_written_once():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["hatch"]["version"]["path"] == "eqxformer/__about__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", eqxformer.__version__)
    written = [f for f in PACKAGE.rglob("*.py") if eqxformer.__version__ in f.read_text()]
    assert written == [PACKAGE / "__about__.py"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel, opened."""
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = target.glob("*.whl")
    with zipfile.ZipFile(file) as opened:
        yield opened


def test_the_wheel_has_every_module_preset_the_types_marker_and_the_licence_and_no_tests(wheel):
    names = set(wheel.namelist())
    sources = {str(f.relative_to(ROOT)) for f in PACKAGE.rglob("*.py")}
    presets = {str(f.relative_to(ROOT)) for f in PACKAGE.rglob("presets/*.json")}
    assert sources | presets | {"eqxformer/py.typed"} <= names
    assert "eqxformer/pretrained/presets/gpt2.json" in presets
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "benchmarks")) for name in names)


def test_the_wheel_has_the_version_and_the_command(wheel):
    (info,) = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {eqxformer.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "eqxformer = eqxformer.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_what_is_imported_anywhere_is_a_declared_dependency():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = settings["dependencies"]
    extras = [name for part in settings["optional-dependencies"].values() for name in part]
    declared = {re.match(r"[\w-]+", name)[0].replace("-", "_").lower() for name in base + extras}
    declared.add("orbax")  # what orbax-checkpoint is imported as
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [node.module or ""]
            else:
                continue
            for top in {module.partition(".")[0] for module in found}:
                assert {top, top.lower()} & (sys.stdlib_module_names | declared), (
                    f"{name} imports {top}"
                )

"""What is shipped: wheel, sdist, dependencies, entry points; and which module imports what."""

import ast
import shutil
import subprocess
import sys
import tarfile
import zipfile
from graphlib import TopologicalSorter
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest
import yaml

from axolotl_aot import __version__

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "axolotl_aot"
RAW_RESULTS = ("alignment/results.jsonl", "alignment/search.csv")  # in the repository only
FOLDERS = ("axolotl_aot", "tests", "docs", "example_configs", "benchmarks", ".github")
WORK = {"work", "outputs", "prepared", "ultrafeedback"}  # folders that commands write


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Built from a copy: what an earlier build has left in a checkout would name files, too."""
    folder, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("copy")
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, copy)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*WORK))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    parts = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".html") or p.name == "py.typed"]
    files = {f"axolotl_aot/{p.relative_to(PACKAGE)}" for p in parts}
    assert {"axolotl_aot/report/templates/report.html", "axolotl_aot/py.typed"} <= files
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"axolotl_aot-{__version__}.dist-info"
    assert {name for name in names if not name.startswith(about)} == files
    assert f"{about}/licenses/LICENSE" in names


def test_tests_and_docs_can_be_read_from_the_sdist(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {m.name.split("/", 1)[1]: m.size for m in archive.getmembers() if m.isfile()}
    assert {path.relative_to(ROOT).as_posix() for path in texts()} <= set(inside)
    assert not [name for name in inside if name.endswith((".pyc", *RAW_RESULTS))]
    assert max(inside.values()) < 500_000
    assert sdist.stat().st_size < 2_500_000


def texts() -> list[Path]:
    """The project's files that are written by hand, and the figures of pages."""
    found = [p for p in ROOT.iterdir() if p.suffix in (".md", ".toml", ".cff", ".in")]
    found += [ROOT / "Makefile", ROOT / "LICENSE"]
    for folder in FOLDERS:
        kinds = (".py", ".md", ".yml", ".html", ".png", ".svg")
        found += [p for p in (ROOT / folder).rglob("*") if p.suffix in kinds and WORK.isdisjoint(p.parts)]
    return found


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    line = f"## [{__version__}] - {citation['date-released']}"
    assert line in (ROOT / "CHANGELOG.md").read_text().splitlines()


def test_the_loss_needs_only_torch_and_scipy(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = (
        "import sys, torch; from axolotl_aot.dominance import dominance_loss\n"
        "print(dominance_loss(torch.ones(2), torch.zeros(3), beta=1.0).item())\n"
        "heavy = {'axolotl', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert float(run.stdout) == pytest.approx(0.3132617)


def test_axolotl_and_matplotlib_are_the_only_dependencies():
    needed = [r for r in requires("axolotl-aot") if "extra ==" not in r]
    assert needed == ["axolotl<0.20,>=0.18", "matplotlib>=3.8"]


def test_commands_are_registered_with_axolotl():
    from axolotl.cli.main import cli

    names = {e.name for e in entry_points(group="axolotl.cli_commands") if e.value.startswith("axolotl_aot.")}
    assert names == {"aot-quickstart", "aot-report", "aot-sample"}
    assert names <= set(cli.list_commands(None))


# From the top down: a module of the root, or a package, may import what stands below its own line, and
# nothing else of the project. What stands in one line never meets.
FLOORS = (
    {"plugin", "cli"},
    {"training"},
    {"report"},
    {"generation"},
    {"dataset_hook", "trained"},
    {"config"},
    {"scoring", "data", "checks", "unread_keys"},
    {"dominance", "quantiles", "errors", "samples", "quickstart"},
)
FLOOR = {place: number for number, places in enumerate(FLOORS) for place in places}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.parent != PACKAGE or path.name != "__init__.py"
}


def imported(module: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute"
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "axolotl_aot" and rest != "__version__":
                found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


def place(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    for other in imported(module):
        assert other in MODULES, f"{module} imports {other}, which is none of the package's modules"
        if place(other) != place(module):
            assert FLOOR[place(other)] > FLOOR[place(module)], f"{module} imports {other}"


def test_no_circle_within_a_package():
    graph = {module: {o for o in imported(module) if place(o) == place(module)} for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_root_is_short():
    assert len(list(PACKAGE.glob("*.py"))) <= 11
    assert {place(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_lives_there(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))

"""What is shipped: wheel, sdist, dependencies, entry points; and which module imports what."""

import ast
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "axolotl_aot"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_wheel_and_sdist_hold_the_package_and_its_licence(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    parts = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".html")]
    files = {f"axolotl_aot/{p.relative_to(PACKAGE)}" for p in parts}
    assert "axolotl_aot/templates/report.html" in files
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert files <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests/") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert files | {"LICENSE", "README.md", "pyproject.toml"} <= inside


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
    assert names == {"aot-quickstart", "aot-report"}
    assert names <= set(cli.list_commands(None))


DATA_LAYERS = (
    "data.rows",
    "data.entry",
    "data.thresholds",
    "data.messages",
    "data.chat_template",
    "data.pairs",
    "data.scored",
    "data.ranked",
    "data.axolotl_types",
    "data.types",
    "data.rendering",
    "data.mapping",
    "data.accounts",
    "data.pipeline",
)
# From the bottom up; a module may import those before it in this list, and no others of the package.
LAYERS = (
    "dominance",
    "curves",
    "report",
    "figures",
    "page",
    "examples",
    "record",
    "head",
    "logprobs",
    "batches",
    "references",
    "sampling",
    "quickstart",
    "checks",
    "ways",
    *DATA_LAYERS,
    "config",
    "training_args",
    "adapters",
    "handover",
    "rescue",
    "scoring",
    "effective_batch",
    "precompute",
    "evaluation",
    "reporting",
    "resume",
    "trainers",
    "door",
    "scorer",
    "compare",
    "plugin",
    "cli",
)


def modules() -> list[str]:
    """All modules of the package, as `data.rows`."""
    paths = (p.relative_to(PACKAGE).with_suffix("") for p in PACKAGE.rglob("*.py"))
    return [".".join(path.parts) for path in paths if path.name != "__init__"]


def test_every_module_has_its_layer():
    assert set(modules()) == set(LAYERS)


@pytest.mark.parametrize("module", LAYERS)
def test_imports_run_downwards(module):
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    assert ast.get_docstring(tree), "what lives here and what it may import"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "axolotl_aot":
            targets = [node.module.partition(".")[2]] if "." in node.module else [a.name for a in node.names]
            targets = [t for t in targets if t != "__version__"]
            for target in targets:
                assert target in LAYERS[: LAYERS.index(module)], f"{module} imports {target}"

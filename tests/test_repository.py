"""`.github`: workflows and forms name what is there, fit the package, and may do no more than they need."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from axolotl_aot import __version__
from tests.docs.pages import make_targets

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOWS = {path.stem: path for path in (ROOT / ".github/workflows").glob("*.yml")}
TARGETS = make_targets()
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)


def workflow(name: str) -> dict[Any, Any]:
    return yaml.safe_load(WORKFLOWS[name].read_text())


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job.get("steps", [])]


def commands(name: str) -> str:
    return "\n".join(step.get("run", "") for step in steps(name))


def test_the_workflows():
    assert set(WORKFLOWS) == {"ci", "nightly", "release"}
    on = {name: workflow(name)[True] for name in WORKFLOWS}  # YAML 1.1 reads the key `on` as true
    assert {"pull_request", "workflow_call"} <= set(on["ci"])
    assert "schedule" in on["nightly"]
    assert on["release"] == {"push": {"tags": ["v*"]}}
    assert "make lint" in commands("ci") and "make test\n" in commands("ci") + "\n"
    assert "make test-all" in commands("nightly")
    assert "twine check --strict" in commands("release")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_a_workflow_names_is_there(name):
    assert set(re.findall(r"\bmake ([\w-]+)", commands(name))) <= TARGETS
    for extra in re.findall(r"\.\[([\w,-]+)\]", commands(name)):
        assert all(re.search(rf"^{part} = \[", PROJECT, re.MULTILINE) for part in extra.split(","))
    for job in workflow(name)["jobs"].values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
    for file in re.findall(r"[\w/]+\.(?:py|md|toml)\b", WORKFLOWS[name].read_text()):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_do_no_more_than_it_needs(name):
    text = WORKFLOWS[name].read_text()
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    granted = {job: own["permissions"] for job, own in found["jobs"].items() if "permissions" in own}
    assert granted == ({"publish": {"id-token": "write"}} if name == "release" else {})
    assert "pull_request_target" not in text and "secrets" not in text
    assert "concurrency" in found
    for step in steps(name):
        # what a stranger writes, such as a branch's name, is never pasted into a shell
        assert "${{" not in step.get("run", "")
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step["uses"])
    for own in found["jobs"].values():
        assert "uses" in own or "timeout-minutes" in own


def test_changes_are_tested_on_every_python_that_the_package_names():
    assert workflow("ci")["jobs"]["test"]["strategy"]["matrix"]["python"] == PYTHONS
    allowed = SpecifierSet(re.search(r'requires-python = "([^"]+)"', PROJECT)[1])
    assert PYTHONS and all(python in allowed for python in PYTHONS)
    used = {
        step["with"]["python-version"]
        for name in WORKFLOWS
        for step in steps(name)
        if "setup-python" in step.get("uses", "")
    }
    assert used - {"${{ matrix.python }}"} <= set(PYTHONS)


def test_publishing_waits_for_tests_and_the_build():
    jobs = workflow("release")["jobs"]
    assert (jobs["publish"]["needs"], jobs["build"]["needs"]) == ("build", "ci")
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert jobs["publish"]["environment"] == "pypi"


@pytest.mark.parametrize(("tag", "fits"), [("v{}", True), ("{}", False), ("v{}.1", False)])
def test_a_tag_that_is_not_the_version_publishes_nothing(tag, fits):
    (script,) = (step["run"] for step in steps("release") if step.get("name") == "The tag is the version")
    environment = {**os.environ, "GITHUB_REF_NAME": tag.format(__version__)}
    # as GitHub runs it: a command that fails ends the step
    run = subprocess.run(["bash", "-e", "-c", script], cwd=ROOT, env=environment)
    assert (run.returncode == 0) == fits


def test_the_bug_form_asks_for_what_is_needed():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    required = {field["id"] for field in form["body"] if field.get("validations", {}).get("required")}
    assert required == {"what", "yaml", "versions", "log"}
    links = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/config.yml").read_text())["contact_links"]
    assert links[0]["url"] in (ROOT / "SECURITY.md").read_text()

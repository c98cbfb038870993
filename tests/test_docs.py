"""What the documents say holds: their code runs, their links lead somewhere, their tables agree with the stages."""

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.scene import QUALITY_FLAGS
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.pipeline.stages import stage_class, stage_names
from cubeloom.workflows.cli import app
from cubeloom.workflows.schema import library, load_workflow

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    code, _ = blocks("README.md", "python")
    simulate_scene(tmp_path / "out/demo/deliveries", height=64, width=64, n_vnir=24, n_swir=24, container="zip")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["ndvi"].shape == (64, 64)
    assert float(names["ndvi"].max()) > 0.3
    assert "denoised" in open_source(tmp_path / "denoised.zarr").spec.variables


def test_the_readme_learns_land_cover_in_less_than_twenty_lines(tmp_path, monkeypatch):
    _, code = blocks("README.md", "python")
    assert len(code.splitlines()) < 20
    simulate_scene(tmp_path / "out/demo/training", height=64, width=64)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert {"classes", "probability"} <= set(open_source(tmp_path / "landcover.zarr").spec.variables)
    assert (tmp_path / "spectral_segmenter.landcover_here.card.json").is_file()


def test_the_workflow_of_the_readme_is_one(tmp_path):
    [text] = blocks("README.md", "yaml")
    (tmp_path / "own.yaml").write_text(text)
    workflow = load_workflow(str(tmp_path / "own.yaml"))
    assert [stage.name for stage in workflow.stages()] == ["mask", "destripe", "denoise"]


def test_the_readme_names_every_workflow_of_the_library():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in library())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page):
    """Every line of a code block that begins with `cubeloom` is one that the command line takes."""
    commands = get_command(app).commands
    for line in re.findall(r"^ {4}(?:\.venv/bin/)?cubeloom (.*)$", page.read_text(), re.MULTILINE):
        name, *arguments = line.partition(" #")[0].split()
        assert name in commands, f"{page.name}: cubeloom {name}"
        command = commands[name]
        if hasattr(command, "commands"):  # a group, such as `models list`
            name, *arguments = arguments
            assert name in command.commands, f"{page.name}: cubeloom {line}"
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= known, f"{page.name}: cubeloom {line}"


def test_every_stage_is_described_with_its_parameters_and_defaults():
    sections = re.split(r"^## `(\w+)`$", (ROOT / "docs/stages.md").read_text(), flags=re.MULTILINE)[1:]
    described = dict(zip(sections[::2], sections[1::2], strict=True))
    assert sorted(described) == stage_names()
    for name, section in described.items():
        rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.MULTILINE))
        fields = stage_class(name).model_fields
        assert rows.keys() == fields.keys(), name
        for field, default in rows.items():
            expected = fields[field].default
            found = yaml.safe_load(default)
            assert found == (list(expected) if isinstance(expected, tuple) else expected), f"{name}.{field}"


def test_the_contract_names_every_flag():
    listed = (ROOT / "docs/scene-contract.md").read_text()
    assert all(f"`{flag}`" in listed for flag in QUALITY_FLAGS)

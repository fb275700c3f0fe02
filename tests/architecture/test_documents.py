"""What the documents say of the project is so."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from architecture.project import PYPROJECT, ROOT
from architecture.typed import type_checked
from shoal.wire import streams
from shoal.wire.messages import Message

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "infra/README.md",
]
RECORDS = sorted(path for path in (ROOT / "docs/adr").glob("[0-9]*.md") if not path.name.startswith("0000"))
MAKEFILE = (ROOT / "Makefile").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def anchors(text: str) -> set[str]:
    """Return the fragments that a page's headings give rise to."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" in target:
            continue
        path, _, fragment = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        assert not fragment or fragment in anchors(file.read_text()), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_targets_named_in_documents_exist(document: Path) -> None:
    text = document.read_text()
    named = re.findall(
        r"(?<![\w/:])((?:shared|services|tests|infra|docs|examples|loadtest|requirements)/[\w/.\-]+)", text
    )
    assert [path for path in named if not (ROOT / path.rstrip("./")).exists()] == []
    targets = re.findall(r"(?:`|^)make ([a-z]+)", text, re.M)
    assert [target for target in targets if not re.search(rf"^{target}:", MAKEFILE, re.M)] == []


def test_the_architecture_names_every_stream() -> None:
    for stream in (*streams.cluster(1), streams.executor("x")):
        name = re.sub(r"_(0|x)$", lambda match: "_<cell>" if match[1] == "0" else "_<executor>", stream.name)
        assert f"`{name}`" in ARCHITECTURE


def test_messages_named_in_the_architecture_exist() -> None:
    known = {message.__name__ for message in Message.__subclasses__()}
    verbs = "ed|ted|Requested|Sandboxes|Template|Command|File|Beat|Left|Tick|Capacity|Ready|Finished"
    named = set(re.findall(rf"`([A-Z][a-z]+(?:[A-Z][a-z]*)*(?:{verbs}))\b", ARCHITECTURE))
    assert len(named) > 20
    assert named <= known


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_decision_has_the_form_and_is_listed(record: Path) -> None:
    text = record.read_text()
    template = (ROOT / "docs/adr/0000-template.md").read_text()
    assert re.findall(r"^## .*$", text, re.M) == re.findall(r"^## .*$", template, re.M)
    assert re.findall(r"^\| (\w+) \|", text, re.M)[:6] == re.findall(r"^\| (\w+) \|", template, re.M)[:6]
    title = text.partition("\n")[0].removeprefix("# ")
    assert f"[{record.name[:4]}]({record.name}) | {title} |" in (ROOT / "docs/adr/README.md").read_text()


def test_the_picture_is_well_formed_and_readable_in_the_dark() -> None:
    picture = (ROOT / "docs/rollout.svg").read_text()
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in picture
    known = {message.__name__ for message in Message.__subclasses__()}
    shown = set(re.findall(r"[A-Z][a-z]+[A-Z][a-z]+", re.sub(r"<style>.*</style>", "", picture, flags=re.S)))
    assert shown - known == {"JetStream"}


@pytest.mark.parametrize("number", range(3))
def test_the_trainers_in_the_readme_have_the_right_types(tmp_path: Path, number: int) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(examples) == 3
    example = examples[number]
    assert 10 < len([line for line in example.splitlines() if line.strip()]) <= 20
    right, said = type_checked(example, tmp_path)
    assert right, said


def test_the_units_start_what_is_installed() -> None:
    units = sorted((ROOT / "infra/systemd").glob("*.service"))
    started = {match for unit in units for match in re.findall(r"/opt/shoal/bin/([\w-]+)", unit.read_text())}
    assert started == PYPROJECT["project"]["scripts"].keys() - {"shoal"} | {"nats-server"}

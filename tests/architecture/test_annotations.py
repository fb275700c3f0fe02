"""From Python 3.14 on annotations are evaluated when somebody asks for them: then a field hides its type of that name.

`state: state.Dumped` means the module `state` as long as the class is made, and the field itself afterwards.
"""

import ast
from pathlib import Path

import pytest

from architecture.project import ROOT, source_files


def hidden(source: str) -> list[str]:
    """Return the annotations of fields that name what a field or method of their class hides."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef):
            continue
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        own = {each.target.id for each in fields if isinstance(each.target, ast.Name)}
        own |= {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
        for field in fields:
            names = {each.id for each in ast.walk(field.annotation) if isinstance(each, ast.Name)}
            found += [f"line {field.lineno}: {node.name} hides {name}" for name in sorted(names & own)]
    return found


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_field_hides_the_name_of_a_type(path: Path) -> None:
    assert hidden(path.read_text()) == []


def test_what_hides_a_name_is_found() -> None:
    assert hidden("class A:\n    state: state.Dumped\n") == ["line 2: A hides state"]
    assert hidden("class A:\n    some: list[int]\n    def list(self): ...\n") == ["line 2: A hides list"]
    assert hidden("class A:\n    state: states.Dumped\n    def state_of(self) -> list[int]: ...\n") == []

"""What must be deterministic is: every core, the contract and the laws, by what their source says.

The import rule forbids the best-known ways to the outside; this goes further and names the few modules they may use.
"""

import ast
from pathlib import Path

import pytest

from architecture.project import PURITY, ROOT, module_of, source_files, within

MAY_IMPORT = {
    "abc", "array", "bisect", "collections", "collections.abc", "copy", "dataclasses", "enum", "functools", "hashlib",
    "heapq", "itertools", "math", "msgspec", "operator", "re", "string", "types", "typing", "zlib",
}  # fmt: skip
MAY_NOT_CALL = {"open", "print", "input", "exec", "eval", "__import__", "hash", "id", "globals"}  # hash is salted
LISTED: list[str] = PURITY["source_modules"]
PURE = [path for path in source_files() if within(module_of(path), LISTED)]


def impurities(source: str, module: str) -> list[str]:
    """Return what a pure module's source does that it must not."""
    own = module.partition(".core")[0] + ".core"
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                imported = [alias.name for alias in names]
            case ast.ImportFrom(module=origin, names=names, level=0):
                # `from shoal_x import core` names the module by what it imports
                imported = [f"{origin}.{alias.name}" if "." not in str(origin) and str(origin).startswith("shoal")
                            else str(origin) for alias in names]  # fmt: skip
            case ast.ImportFrom():
                imported = ["a relative name"]
            case ast.Call(func=ast.Name(id=name)) if name in MAY_NOT_CALL:
                found.append(f"line {node.lineno} calls {name}")
                continue
            case ast.For(iter=where) | ast.comprehension(iter=where):
                match where:
                    case ast.Set() | ast.SetComp() | ast.Call(func=ast.Name(id="set" | "frozenset")):
                        found.append(f"line {where.lineno} iterates over a set")
                continue
            case _:
                continue
        found += [
            f"line {node.lineno} imports {name}"
            for name in imported
            if name not in MAY_IMPORT and not within(name, ["shoal.wire", "shoal.machine", own])
        ]
    return found


def unlisted_cores(root: Path) -> list[str]:
    """Return the modules called `core` that the purity rule does not cover."""
    cores = [
        module_of(path, root) for path in source_files(root) if "core" in path.relative_to(root).with_suffix("").parts
    ]
    return [module for module in cores if not within(module, LISTED)]


@pytest.mark.parametrize("path", PURE, ids=module_of)
def test_it_is_pure(path: Path) -> None:
    assert impurities(path.read_text(), module_of(path)) == []


def test_every_listed_module_exists() -> None:
    assert {module for module in LISTED if not any(within(module_of(path), [module]) for path in PURE)} == set()


def test_every_core_is_listed() -> None:
    assert unlisted_cores(ROOT) == []


@pytest.mark.parametrize("name", ["core.py", "core/__init__.py", "core/policy.py"])
def test_a_core_that_nobody_listed_is_noticed(tmp_path: Path, name: str) -> None:
    planted = tmp_path / "services" / "shoal_extra" / name
    planted.parent.mkdir(parents=True)
    planted.write_text("")
    assert unlisted_cores(tmp_path) == [module_of(planted, tmp_path)]


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from datetime import datetime",
        "from random import Random",
        "import nats",
        "from . import other",
        "from shoal import client",
        "from shoal.bus.protocol import Bus",
        "from shoal_executor import service",
        "def f():\n    import secrets",
        "print('here')",
        "open('/etc/passwd')",
        "key = hash('salted')",
        "for name in {'a', 'b'}: pass",
        "for name in set(names): pass",
        "order = [name for name in frozenset(names)]",
    ],
)
def test_a_planted_impurity_is_noticed(source: str) -> None:
    assert len(impurities(source, "shoal_scheduler.core.policy")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from collections.abc import Sequence",
        "from shoal.wire.messages import Tick",
        "from shoal.wire import subjects",
        "from shoal.machine import ranges",
        "from shoal_scheduler.core import policy",
        "for name in sorted({'a', 'b'}): pass",
        "message.id()",
    ],
)
def test_what_is_pure_passes(source: str) -> None:
    assert impurities(source, "shoal_scheduler.core.policy") == []

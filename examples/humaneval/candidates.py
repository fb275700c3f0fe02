"""Candidate programs for a HumanEval problem: the reference solution, and mutants of it made by a seeded program.

A mutant is the reference with one or two small faults of the kind a model makes: a comparison off by one, a swapped
operator, a wrong constant, an inverted condition. Some mutants turn out to be equivalent, and pass: that is what the
benchmark's tests are for.
"""

import ast
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem as the benchmark ships it."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str

    @property
    def reference(self) -> str:
        """The benchmark's own solution."""
        return self.prompt + self.canonical_solution

    def program(self, solution: str) -> str:
        """Return a program that exits 0 if, and only if, the solution passes the benchmark's tests."""
        return f"{solution}\n\n{self.test}\n\ncheck({self.entry_point})\n"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A solution to try. Only one of a problem's candidates is the reference."""

    source: str
    is_reference: bool


def candidates(problem: Problem, count: int, seed: int) -> list[Candidate]:
    """Return `count` different candidates in seeded order, the reference among them."""
    random_ = random.Random(f"{seed}/{problem.task_id}")
    seen = {ast.unparse(ast.parse(problem.reference))}
    found = [Candidate(problem.reference, is_reference=True)]
    for _ in range(50 * count):
        if len(found) == count:
            break
        source = _mutate(problem.reference, random_)
        if source not in seen:
            seen.add(source)
            found.append(Candidate(source, is_reference=False))
    while len(found) < count:  # a solution too small to have so many mutants
        wrong = f"{problem.prompt}    return {len(found)!r}\n"
        found.append(Candidate(wrong, is_reference=False))
    random_.shuffle(found)
    return found


def _mutate(source: str, random_: random.Random) -> str:
    tree = copy.deepcopy(ast.parse(source))
    for _ in range(random_.choice((1, 1, 2))):
        faults = list(_faults(tree))
        if faults:
            random_.choice(faults)()
    return ast.unparse(ast.fix_missing_locations(tree))


def _faults(tree: ast.Module) -> Iterator[Callable[[], None]]:
    for node in ast.walk(tree):
        match node:
            case ast.Compare(ops=[operation, *_]) if type(operation) in _COMPARISONS:
                swapped = _COMPARISONS[type(operation)]
                yield partial(node.ops.__setitem__, 0, swapped())
            case ast.BinOp(op=operator) if type(operator) in _OPERATORS:
                other = _OPERATORS[type(operator)]
                yield partial(setattr, node, "op", other())
            case ast.BoolOp(op=ast.And()):
                yield partial(setattr, node, "op", ast.Or())
            case ast.BoolOp(op=ast.Or()):
                yield partial(setattr, node, "op", ast.And())
            case ast.Constant(value=bool() as truth):
                yield partial(setattr, node, "value", not truth)
            case ast.Constant(value=int() as number):
                yield partial(setattr, node, "value", number + 1)
            case ast.If(test=test) | ast.While(test=test):
                yield partial(setattr, node, "test", ast.UnaryOp(ast.Not(), test))
            case ast.Return(value=ast.expr()):
                yield partial(setattr, node, "value", ast.Constant(None))

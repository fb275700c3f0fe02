"""Numbers on a command line: sizes, and ranges without what compares with nothing."""

import math
from typing import Any

import click

from shoal.wire.quantities import BadValueError, format_bytes, parse_bytes


class FiniteRange(click.FloatRange):
    """A FloatRange that refuses `nan`, which is below no least and above no most, and `inf`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail with what would be right."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value} is no number to reckon with; write one such as {self._example()}", param, ctx)
        return found

    def _example(self) -> str:
        return f"{max(self.min or 0.0, min(1.0, self.max or 1.0)):g}"


class Size(click.ParamType[int]):
    """A size such as 256MiB, as an int of bytes; `least`: what makes sense, `such_as`: what is usual."""

    name = "size"

    def __init__(self, least: int = 1, such_as: str = "2GiB") -> None:
        self._least = least
        self._such_as = such_as

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes, or fail with what would be right."""
        try:
            found = parse_bytes(value, param.name if param and param.name else "size")
        except BadValueError as error:
            self.fail(str(error), param, ctx)
        if found < self._least:
            least = format_bytes(self._least).replace(" ", "")
            self.fail(f"{value} is too little; write {least} or more, such as {self._such_as}", param, ctx)
        return found

"""How a load test is getting on, for a person: one block, kept up to date, on a terminal, else a line at times."""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from shoal_loadtest.measure.roles import ROLES
from shoal_loadtest.measure.sampling import Row
from shoal_loadtest.scenario.model import Scenario

_LINE_EVERY_S: Final = 5.0
_SPARK: Final = "▁▂▃▄▅▆▇█"
_WIDTH: Final = 48


class _Telling(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


class Progress:
    """Shows rows as they come, on standard error. `quiet`: nothing at all."""

    def __init__(self, scenario: Scenario, name: str, *, quiet: bool = False) -> None:
        self._scenario = scenario
        self._name = name
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._live: Any = None
        self._told = 0.0
        self._rows: list[Row] = []
        self._rates: list[float] = []
        self._logged = _Telling(self.tell)

    def __enter__(self) -> "Progress":
        logging.getLogger("shoal").addHandler(self._logged)
        if self._terminal:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("shoal").removeHandler(self._logged)
        if self._live is not None:
            self._live.stop()

    def tell(self, text: str) -> None:
        """Say a sentence."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def row(self, row: Row) -> None:
        """Show a row of samples."""
        before = self._rows[-1] if self._rows else None
        self._rows = [row]
        rates = self._rates_of(row, before)
        self._rates.append(rates[0])
        del self._rates[:-_WIDTH]
        if self._live is not None:
            self._live.update(self._block(row, rates))
        elif not self._quiet and time.monotonic() - self._told >= _LINE_EVERY_S:
            self._told = time.monotonic()
            self.tell(self._line(row, rates))

    @staticmethod
    def _rates_of(row: Row, before: Row | None) -> tuple[float, float]:
        """Return sandboxes and commands a second since the row before."""
        if before is None:
            return 0.0, 0.0
        took = max((row["t"] or 0) - (before["t"] or 0), 1e-3)
        through = max(_of(row, "through") - _of(before, "through"), _of(row, "ready") - _of(before, "ready"), 0)
        return through / took, max(_of(row, "commands") - _of(before, "commands"), 0) / took

    def _phase(self, row: Row) -> str:
        number = int(_of(row, "phase"))
        phases = self._scenario.phases
        return f"{phases[number].name} ({number + 1}/{len(phases)})" if 0 <= number < len(phases) else "-"

    def _line(self, row: Row, rates: tuple[float, float]) -> str:
        parts = [
            f"{_of(row, 't'):.0f} s", self._phase(row), f"{_of(row, 'through'):,.0f} through", f"{rates[0]:,.0f}/s",
            f"{_of(row, 'live'):,.0f} live", f"{_of(row, 'in_flight'):,.0f} in flight",
        ]  # fmt: skip
        if _of(row, "commands"):
            parts.append(f"{_of(row, 'commands'):,.0f} commands, {rates[1]:,.0f}/s")
        if row.get("ready_p99_ms") is not None:
            parts.append(f"ready p99 {_of(row, 'ready_p99_ms'):,.1f} ms")
        return ", ".join(parts)

    def _block(self, row: Row, rates: tuple[float, float]) -> Any:
        from rich.panel import Panel
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for _ in range(4):
            grid.add_column(justify="right")
        figures = [
            ("through", f"{_of(row, 'through'):,.0f}"), ("a second", f"{rates[0]:,.0f}"),
            ("live", f"{_of(row, 'live'):,.0f}"), ("in flight", f"{_of(row, 'in_flight'):,.0f}"),
            ("waiting for room", f"{_of(row, 'waiting'):,.0f}"), ("failed", f"{_of(row, 'failed'):,.0f}"),
            ("commands", f"{_of(row, 'commands'):,.0f}"), ("a second", f"{rates[1]:,.0f}"),
            ("ready p50", _ms(row, "ready_p50_ms")), ("ready p99", _ms(row, "ready_p99_ms")),
            ("GPU-seconds waited", f"{_of(row, 'gpu_seconds'):,.0f}"), ("command p99", _ms(row, "command_p99_ms")),
        ]  # fmt: skip
        for left, right in zip(figures[::2], figures[1::2], strict=True):
            grid.add_row(left[0], f"[bold]{left[1]}[/]", right[0], f"[bold]{right[1]}[/]")
        cpu = "  ".join(f"{role} {_of(row, f'cpu_{role}'):.0%}" for role in ROLES if row.get(f"cpu_{role}"))
        outer = Table.grid()
        outer.add_row(grid)
        outer.add_row(f"cpu  {cpu}")
        outer.add_row(_spark(self._rates))
        return Panel(outer, title=f"{self._name}: {self._phase(row)}, {_of(row, 't'):.0f} s", expand=False)


def _of(row: Row, name: str) -> float:
    return row.get(name) or 0.0


def _ms(row: Row, name: str) -> str:
    value = row.get(name)
    return "-" if value is None else f"{value:,.1f} ms"


def _spark(values: list[float]) -> str:
    most = max(values, default=0.0) or 1.0
    return "".join(_SPARK[min(int(value / most * (len(_SPARK) - 1)), len(_SPARK) - 1)] for value in values)

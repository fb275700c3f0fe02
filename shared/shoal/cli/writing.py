"""Rows written into a file as they come: JSON lines, or Parquet. The file is there when all of it is."""

import os
import sys
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, Self

from shoal.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from shoal.client.rows import TrajectoryStep

_ROWS: Final = 1000
_BYTES: Final = 16 * 1024**2
"""A row group of Parquet is held in memory: so many rows, or so much text, at most."""


class Writer(Protocol):
    """Takes rows; entered and left as a context."""

    def add(self, row: "TrajectoryStep") -> None:
        """Write a row."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def writer(output: str) -> Writer:
    """Return what writes to this file, by its name's ending; `-` is standard output. Raises Failure."""
    if output == "-" or output.endswith((".jsonl", ".ndjson")):
        return JsonLines(output)
    if output.endswith(".parquet"):
        return Parquet(Path(output))
    raise Failure(Exit.USAGE, f"--output: {output!r} ends in neither .jsonl nor .parquet; write a file that does, or -")


class _Part:
    """A file under another name until it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(f".{path.name}.part")
        if path.is_dir():
            raise Failure(Exit.USAGE, f"--output: {path} is a directory; write a file's name")
        try:
            self.file: IO[bytes] = self.part.open("wb")
        except OSError as error:
            raise Failure(Exit.USAGE, f"--output: cannot write {path}: {error.strerror}") from error

    def close(self, *, whole: bool) -> None:
        """Let it be there, or not."""
        self.file.close()
        if whole:
            os.replace(self.part, self.path)
        else:
            self.part.unlink(missing_ok=True)


class JsonLines:
    """One JSON object a line."""

    def __init__(self, output: str) -> None:
        import orjson

        self._dumps = orjson.dumps
        self._option = orjson.OPT_APPEND_NEWLINE
        self._part = None if output == "-" else _Part(Path(output))
        self._file = self._part.file if self._part else sys.stdout.buffer

    def add(self, row: "TrajectoryStep") -> None:
        """Write a row."""
        self._file.write(self._dumps(row, option=self._option))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part:
            self._part.close(whole=kind is None)


class Parquet:
    """A Parquet file, in row groups."""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            what = "Parquet needs pyarrow: pip install 'shoal[parquet]'; or write a .jsonl file"
            raise Failure(Exit.USAGE, f"--output: {what}") from None
        self._arrow = pyarrow
        self._schema = _schema(pyarrow)
        self._part = _Part(path)
        self._file = pyarrow.parquet.ParquetWriter(self._part.file, self._schema, compression="zstd")
        self._rows: list[TrajectoryStep] = []
        self._bytes = 0

    def add(self, row: "TrajectoryStep") -> None:
        """Write a row, with those before it when they are enough."""
        self._rows.append(row)
        self._bytes += sum(len(text) for text in (row.command, row.stdin, row.data, row.stdout, row.stderr) if text)
        if len(self._rows) >= _ROWS or self._bytes >= _BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = {name: [getattr(row, name) for row in self._rows] for name in self._schema.names}
            columns["env"] = [None if env is None else list(env.items()) for env in columns["env"]]
            self._file.write_table(self._arrow.table(columns, schema=self._schema))
        self._rows.clear()
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._file.close()
        finally:
            self._part.close(whole=kind is None)


def _schema(arrow: Any) -> Any:
    """Return the columns: the fields of a row, by their types."""
    from shoal.client.rows import TrajectoryStep

    text = arrow.string()
    kinds = {
        "str": text, "str | None": text, "int": arrow.int64(), "int | None": arrow.int64(), "bool": arrow.bool_(),
        "float | None": arrow.float64(), "list[str] | None": arrow.list_(text),
        "dict[str, str] | None": arrow.map_(text, text),
    }  # fmt: skip
    return arrow.schema([(field.name, kinds[_named(field.type)]) for field in fields(TrajectoryStep)])


def _named(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)

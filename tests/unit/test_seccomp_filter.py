"""Where the library that compiles the filter is missing, the error names its package."""

import builtins
from collections.abc import Iterator

import pytest

from shoal_executor.drivers.zygote.filter import compile_filter


@pytest.fixture
def without_the_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    imported = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name == "pyseccomp":  # as its own import of the library fails
            raise OSError("libseccomp.so.2: cannot open shared object file: No such file or directory")
        return imported(name, *rest)  # type: ignore[arg-type]  # handed on as it came

    compile_filter.cache_clear()
    monkeypatch.setattr(builtins, "__import__", missing)
    yield
    compile_filter.cache_clear()


@pytest.mark.usefixtures("without_the_library")
def test_a_missing_library_is_named_with_its_package() -> None:
    with pytest.raises(RuntimeError, match=r"libseccomp is missing .*: apt install libseccomp2"):
        compile_filter()

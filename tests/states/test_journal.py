"""A journal of this version is continued in the middle of a sentence; one of another version is not."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from shoal.wire.codec import decode
from shoal_executor.core import ExecutorCore
from shoal_executor.service.journal import VERSION
from states.journals import going_on
from states.make_golden import GOLDEN

MAKE = (
    "who says something else for what happened must not go on in the middle of a sentence: set VERSION of the journal"
    " to the next number, and run: python tests/states/journals.py"
)


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    path = GOLDEN / f"journal-{VERSION}.json"
    assert path.exists(), "run: python tests/states/journals.py"
    found: dict[str, Any] = json.loads(path.read_text())
    (tmp_path / "journal").write_bytes(zlib.decompress(base64.b85decode(found["journal"])))
    return found


async def test_a_process_that_reads_it_says_the_same_under_the_same_numbers(
    kept: dict[str, Any], tmp_path: Path
) -> None:
    known, continued = going_on(tmp_path)
    assert continued, MAKE
    mine = [(number, subject, decode(payload)) for number, subject, payload in known.outgoing.unstored]
    known.close(forget=False)
    assert mine == [(number, subject, decode(bytes.fromhex(text))) for number, subject, text in kept["said"]], MAKE
    assert len(mine) > 10
    assert known.core.live == 2


@pytest.mark.parametrize("by", [-1, 1])
async def test_one_of_another_version_is_begun_anew(kept: dict[str, Any], tmp_path: Path, by: int) -> None:
    known, continued = going_on(tmp_path, VERSION + by)
    assert not continued
    assert (known.outgoing.unstored, known.inbox) == ((), None)
    assert known.core.dump() == ExecutorCore("boot-1").dump()
    known.close(forget=False)

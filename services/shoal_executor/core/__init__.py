"""The executor's core: `roster` is what it holds, `effects` what follows from each thing that happens to it."""

from shoal.wire.asked import Asked as Asked
from shoal_executor.core.effects import (
    CarryOut as CarryOut,
    Destroy as Destroy,
    Effect as Effect,
    Key as Key,
    LetSleep as LetSleep,
    Phase as Phase,
    Refuse as Refuse,
    ReportEnded as ReportEnded,
    ReportFinished as ReportFinished,
    ReportReady as ReportReady,
    ReportReleased as ReportReleased,
    ReportSlept as ReportSlept,
    RunJob as RunJob,
    Start as Start,
)
from shoal_executor.core.roster import REMEMBERED_ENDS as REMEMBERED_ENDS, ExecutorCore as ExecutorCore, Group as Group

"""The executor's core: `roster` is what it holds, `ended` what it held, `effects` what follows from each event."""

from shoal.wire.asked import Asked as Asked
from shoal_executor.core.effects import (
    CarryOut as CarryOut,
    CutShort as CutShort,
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
    RunJobs as RunJobs,
    Start as Start,
)
from shoal_executor.core.ended import REMEMBERED_ENDS as REMEMBERED_ENDS
from shoal_executor.core.group import Group as Group
from shoal_executor.core.roster import ExecutorCore as ExecutorCore

"""The table on isolation in README.md, whose lines `verify --isolation` shows."""

from dataclasses import dataclass, replace

from ....db import PinnedSession
from ..check import CheckContext
from ..history import History, Step
from ..isolation import Expected, Line, LineCheck, Observation, Probe, Process, append, make_lists, read_lists
from ..probes import LongFork, MonotonicReads, OwnWrites
from .one_server import ONE_SERVER
from .playground import playground, prefix_of
from .two_phase import PAIR


@dataclass(kw_only=True)
class FracturedRead(Probe):
    """A reader of two databases sees a transaction in one of them only."""

    anomaly = "Fractured read"
    tries: int = 10

    def run(self, context: CheckContext, history: History) -> Observation:
        """Append to both databases in a two-phase commit, and read both after each step that follows the decision."""
        found = Observation()
        with playground(context) as databases:
            nodes = [databases.specs[name].node for name in PAIR]
            for lists in zip(*(make_lists(context, history, self.tries, node) for node in nodes), strict=True):
                states: list[tuple[bool, ...]] = []
                steps = [Step(key, 1) for key in lists]

                def look(step: str, lists: tuple[int, ...] = lists, states: list[tuple[bool, ...]] = states) -> None:
                    if not step.startswith(("decided", "committed")):
                        return
                    reads = [Step(key) for key in lists]
                    with Process(history, self.anomaly).recorded(reads):
                        for name, read in zip(PAIR, reads, strict=True):
                            [read.read] = databases.read(name, read_lists, [read.key])[1]
                    states.append(tuple(bool(read.read) for read in reads))

                def work(*sessions: PinnedSession, lists: tuple[int, ...]) -> None:
                    for session, key in zip(sessions, lists, strict=True):
                        append(session, key, 1)

                databases.on_step = look
                with Process(history, self.anomaly).recorded(steps):
                    replace(databases.two_phase(*PAIR), prefix=prefix_of(context)).run(work, lists=lists)
                halves = [state for state in states if len(set(state)) > 1]
                had = [
                    ", ".join(
                        f"{name} {'had' if there else 'lacked'} it" for name, there in zip(PAIR, one, strict=True)
                    )
                    for one in halves
                ]
                found.add(bool(halves) if states else None, *had[:1])
        return found


TABLE = (
    *ONE_SERVER,
    Line(LongFork(where="one database", seconds=5), Expected.RULED_OUT, "snapshots of one server have one order"),
    Line(MonotonicReads(where="one database"), Expected.RULED_OUT, "there is one copy of each row"),
    Line(OwnWrites(where="one database"), Expected.RULED_OUT, "there is one copy of each row"),
    Line(
        FracturedRead(where="two databases, two-phase commit"),
        Expected.POSSIBLE,
        "no snapshot spans both; once the commit has ended, both have it",
    ),
)
"""Lines of these databases."""

CHECK: type[LineCheck] = LineCheck
"""Base of the checks of the lines."""

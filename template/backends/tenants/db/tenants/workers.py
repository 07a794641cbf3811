"""Work for many tenants at once, by threads here and by the tasks of an event loop in `aio`."""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from threading import Event, Thread
from typing import Any, ClassVar, TypeAlias, TypeVar

from sqlalchemy.util.queue import Empty, Full, Queue

from .errors import SomeTenantsFailed

T = TypeVar("T")

Ask: TypeAlias = Callable[[str], Generator[list[T], None, None]]
"""Function that yields a tenant's answers, in lists; a generator that is not exhausted is closed."""

Answers: TypeAlias = Generator[tuple[str, list[T]], None, None]
"""Answers of many tenants, each list with the name of its tenant."""


class Workers:
    """Threads; a subclass has tasks."""

    is_asyncio: ClassVar[bool] = False
    """True if the workers are tasks."""
    queue: ClassVar[type[Any]] = Queue
    """Constructor of a queue for the workers, given its size; SQLAlchemy's pools use the same."""

    def start(self, work: Callable[[], None]) -> Callable[[], object]:
        """Start a worker, and return a function that waits until it ends."""
        thread = Thread(target=work, daemon=True)
        thread.start()
        return thread.join

    def fan_out(self, find_names: Callable[[], Sequence[str]], ask: Ask[T], at_once: int) -> Answers[T]:
        """Ask that many tenants at the same time, and yield answers as they arrive; `SomeTenantsFailed` comes last."""
        names = find_names()
        waiting = deque(names)
        answers = self.queue(at_once)
        stopped = Event()

        def put(name: str, found: list[T] | None, failure: Exception | None = None) -> None:
            while not stopped.is_set():
                with suppress(Full):
                    answers.put((name, found, failure), timeout=0.1)
                    break

        def ask_one(name: str) -> None:
            try:
                with closing(ask(name)) as chunks:
                    for chunk in chunks:
                        put(name, chunk)
                        if stopped.is_set():
                            return
            except Exception as error:
                put(name, None, error)
            else:
                put(name, None)

        def work() -> None:
            while waiting and not stopped.is_set():
                with suppress(IndexError):
                    ask_one(waiting.popleft())

        started = [self.start(work) for _ in range(min(at_once, len(names)))]
        failures: dict[str, Exception] = {}
        left = len(names)
        try:
            while left:
                name, found, failure = answers.get()
                if found is not None:
                    yield name, found
                    continue
                left -= 1
                if failure is not None:
                    failures[name] = failure
        finally:
            # Not interrupted, because that would break connections: each worker ends after its current chunk.
            stopped.set()
            with suppress(Empty):
                while True:
                    answers.get(block=False)
            for join in started:
                join()
        if failures:
            raise SomeTenantsFailed(failures, len(names))

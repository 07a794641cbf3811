"""Check that messages between databases have their effect once."""

from sqlalchemy import func, insert, select, text

from ....db import PinnedSession, outbox
from ..check import Check, CheckContext, CheckResult, failed, passed
from ..scratch import Entry
from .playground import playground


class MessagesHaveTheirEffectOnce(Check):
    """A message has its effect once, however often it is delivered.

    Look into the outbox of the source with `messages list`.
    """

    timeout = 20.0
    MESSAGES = 20

    def run(self, context: CheckContext) -> CheckResult:
        """Send messages to a file, deliver them, put them back into the outbox, and deliver them again."""
        receivers = {("catalog", "verify"): _receive}
        with playground(context) as databases:
            for _ in range(self.MESSAGES):
                databases.run("orders", outbox.enqueue, target="catalog", topic="verify", payload={"amount": 1})
            sent = databases.read("orders", lambda session: session.execute(select(outbox.outgoing)).mappings().all())
            first = outbox.relay(databases, "orders", receivers)
            put_back = insert(outbox.outgoing)
            databases.run("orders", lambda session: session.execute(put_back, [dict(row) for row in sent]))
            again = outbox.relay(databases, "orders", receivers)
            effects = databases.read("catalog", lambda session: session.scalar(select(func.sum(Entry.amount)))) or 0
        evidence = {"sent": len(sent), "delivered": first.delivered, "duplicates": again.duplicates, "effects": effects}
        if effects != self.MESSAGES or again.duplicates != self.MESSAGES:
            return failed(f"{self.MESSAGES} messages had {effects} effects", evidence)
        return passed(f"{self.MESSAGES} messages delivered twice, {effects} effects", evidence)


def _receive(session: PinnedSession, message: outbox.Message) -> None:
    session.execute(text("INSERT INTO entry (amount) VALUES (:amount)"), message.payload)

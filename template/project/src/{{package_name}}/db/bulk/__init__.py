"""Bulk loads: many rows into one table by COPY, in chunks that are retried and can be resumed.

    bulk_load(db, Account, ({"owner": name} for name in names), load="accounts-2026-11")

The transaction that loads a chunk also records it in the table `bulk_load_chunk`. A chunk whose COMMIT reply was lost
is therefore safe to run again, and calling `bulk_load` again with the same name and rows resumes an interrupted load:
it skips the recorded chunks. A failure costs one chunk, locks are short, and memory holds no more than one chunk.
"""

from ._chunks import BadRow
from ._load import LoadChanged, Loaded, Progress, bulk_load, forget_load, metadata, record

__all__ = ["BadRow", "LoadChanged", "Loaded", "Progress", "bulk_load", "forget_load", "metadata", "record"]

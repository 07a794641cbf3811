"""The two comparisons of reladiff, which `diff.py` starts in an environment of their own.

    python peer_reladiff.py TABLE KEY COLUMN…

reads the servers from BENCH_NODES, and prints the number of rows that it found, of each comparison, as JSON.
"""

import json
import os
import sys
from typing import Any

from reladiff import connect_to_table, diff_tables  # type: ignore[import-not-found]

THREADS = 4
"""Number of threads: more are slower on two cores."""


def main(table: str, key: str, *columns: str) -> list[int]:
    """Compare the first server with each of the others."""
    nodes: list[dict[str, Any]] = json.loads(os.environ["BENCH_NODES"])
    path = tuple(table.split("."))
    first, *others = [connect_to_table(node, path, key, thread_count=THREADS) for node in nodes]
    options = {
        "key_columns": (key,),
        "extra_columns": columns,
        "threaded": True,
        "max_threadpool_size": THREADS,
    }
    return [len({row[0] for _, row in diff_tables(first, other, **options)}) for other in others]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

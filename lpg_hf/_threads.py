"""Threads: how many the user asks for, and work in several of them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def asked_threads() -> int | None:
    """OMP_NUM_THREADS, of a list (one number for each nested level) the first; None: it is not set, or no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) or None if first.isdecimal() else None


def prefetch(function: Callable, items: Iterable, num_workers: int) -> Iterator:
    """`map` in threads, in order, a few items ahead of the consumer, so memory stays flat."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        pending = []
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > max(1, num_workers):
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()

"""Progress with time left: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LOG_EVERY_S = 5.0


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable`, showing on standard error how far it is and how long it will take.

    Args:
        iterable: what to walk through.
        description: a few words, shown before the count.
        total: number of items; `len(iterable)` when it has one.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, description, total=total, leave=False, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for done, item in enumerate(iterable):
        yield item
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            print(_line(description, done + 1, total, now - start), file=sys.stderr, flush=True)


def _line(description: str, done: int, total: int | None, elapsed: float) -> str:
    if not total or done > total:  # more work than foreseen, such as draws that were rejected
        return f"{description}: {done} done, {elapsed:.0f} s"
    left = elapsed / done * (total - done)
    return f"{description}: {done}/{total} ({100 * done // total} %), {elapsed:.0f} s, {left:.0f} s left"

"""Progress with the remaining time: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")

LOG_EVERY_S = 5.0


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable`, and show how many items are done and how long the rest will take.

    Args:
        iterable: items to iterate over.
        description: a few words, shown before the count.
        total: number of items; by default `len(iterable)` if it has one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, description, total=total, leave=False, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            logger.info(_format_line(description, done, total, now - start))


def _format_line(description: str, done: int, total: int | None, elapsed: float) -> str:
    if not total or done > total:  # There can be more items than expected, such as samples after rejections.
        return f"{description}: {done} done, {elapsed:.0f} s"
    remaining = elapsed / done * (total - done)
    return f"{description}: {done}/{total} ({100 * done // total} %), {elapsed:.0f} s, {remaining:.0f} s left"

"""A map over several processes that keeps the order of its items and a bounded number of results in memory."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNKS_PER_WORKER = 3  # chunks that wait or run for each process; more cost memory and gain nothing
_MIN_ITEMS = 64  # fewer items are done sooner than processes start


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, chunk: int = 8
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of the items, computed by several processes.

    The results do not depend on the number of processes. With one process, or with few items, no process is started.

    Args:
        function: a function at the top level of a module. It must not need a state of this process.
        items: what is passed to it; each must be picklable.
        workers: number of processes; None: one per core that this process may use.
        chunk: number of items that a process gets at once.

    Raises:
        ValueError: `workers` or `chunk` is below 1.
        Exception: the first one, in the order of the items, that `function` raises.
    """
    if chunk < 1 or (workers is not None and workers < 1):
        raise ValueError(f"workers {workers}, chunk {chunk}; expected at least 1")
    count = available_cores() if workers is None else workers
    iterator = iter(items)
    head = list(islice(iterator, _MIN_ITEMS))
    if count == 1 or len(head) < _MIN_ITEMS:
        for item in head:
            yield function(item)
        for item in iterator:
            yield function(item)
        return
    chunks = _chunks(head, iterator, chunk)
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    pool = ProcessPoolExecutor(count, context)
    try:
        waiting: deque[Future[list[Result]]] = deque()
        for part in chunks:
            waiting.append(pool.submit(_apply, function, part))
            if len(waiting) >= count * _CHUNKS_PER_WORKER:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(head: list[Item], rest: Iterator[Item], size: int) -> Iterator[list[Item]]:
    yield from (head[start : start + size] for start in range(0, len(head), size))
    while part := list(islice(rest, size)):
        yield part


def _apply(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]

"""A map over several processes that keeps the order of its items and a bounded number of results in memory."""

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from types import ModuleType
from typing import TypeVar

from defect_core.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNKS_PER_WORKER = 3  # chunks that wait or run for each process; more cost memory and gain nothing
_MIN_ITEMS = 64  # fewer items are done sooner than processes start


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, chunk: int = 8
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in the order of the items, computed by several processes.

    The results do not depend on the number of processes. With one process, with few items, and in a daemonic process
    (which may not start others) no process is started. A script that calls this needs no `if __name__ == "__main__"`.

    Args:
        function: a function at the top level of an imported module. It must not need a state of this process.
        items: what is passed to it; each must be picklable.
        workers: number of processes; None: one per core that this process may use.
        chunk: number of items that a process gets at once.

    Raises:
        ValueError: `workers` or `chunk` is below 1.
        InputError: the system ended a process, which it does if memory runs out.
        Exception: the first one, in the order of the items, that `function` raises.
    """
    if chunk < 1 or (workers is not None and workers < 1):
        raise ValueError(f"workers {workers}, chunk {chunk}; expected at least 1")
    count = available_cores() if workers is None else workers
    iterator = iter(items)
    head = list(islice(iterator, _MIN_ITEMS))
    if count == 1 or len(head) < _MIN_ITEMS or multiprocessing.current_process().daemon:
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
            waiting.append(_submit(pool, function, part))
            if len(waiting) >= count * _CHUNKS_PER_WORKER:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            f"one of {count} worker processes was ended by the system; expected enough memory for {count} images at "
            "once, so close other programs"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(head: list[Item], rest: Iterator[Item], size: int) -> Iterator[list[Item]]:
    yield from (head[start : start + size] for start in range(0, len(head), size))
    while part := list(islice(rest, size)):
        yield part


def _submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: list[Item]) -> "Future[list[Result]]":
    """Submit a chunk, with an empty `__main__` meanwhile.

    A process that starts imports the `__main__` of its parent. The script of a user would run a second time in it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        return pool.submit(_apply, function, items)
    finally:
        sys.modules["__main__"] = main


def _apply(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return [function(item) for item in items]

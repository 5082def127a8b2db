"""Results in order, computed by threads ahead of the caller: shared by the loader and the packing scripts."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor


def ordered(function: Callable, arguments: Iterable[tuple], threads: int, ahead: int) -> Generator:
    """Yields `function(*a)` for each `a` of `arguments`, in order; an error is raised when its result is due.

    At most `ahead` results beyond the one being yielded are computed or waiting, so memory stays bounded. Threads are
    enough because the work is decoding, which releases the interpreter lock. Without threads, each result is computed
    when it is requested.
    """
    if not threads:
        yield from (function(*a) for a in arguments)
        return
    waiting = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for a in arguments:
                waiting.append(pool.submit(function, *a))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the caller stopped or failed: calls that have not started are not needed
            for future in waiting:
                future.cancel()

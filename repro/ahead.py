"""Results in order, computed by threads ahead of whoever asks: what the loader and the packing scripts share."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor


def ordered(function: Callable, arguments: Iterable[tuple], threads: int, ahead: int) -> Generator:
    """Yields `function(*a)` for each `a` of `arguments`, in their order; an error is raised in its result's place.

    At most `ahead` results beyond the one that is yielded are computed or waiting, so memory stays bounded. Threads
    suffice where the work is decoding, which lets other Python threads run. Without threads, each result is computed
    when it is asked for.
    """
    if not threads:
        yield from (function(*each) for each in arguments)
        return
    waiting = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for each in arguments:
                waiting.append(pool.submit(function, *each))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the asker has left or failed: what has not started need not
            for future in waiting:
                future.cancel()

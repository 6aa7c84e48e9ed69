"""One training at a time on a thread of its own, its news handed to whoever asked for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kolmo.errors import KolmoError
from kolmo.explore.model import Frames, Lesson, Step, StoppedError, train
from kolmo.explore.settings import RATES, Settings
from kolmo.profile import section
from kolmo.text import one_line

#: hands a call over to the page's own thread
Post = Callable[[Callable[[], None]], None]


@dataclass(frozen=True)
class News:
    """What the page is told, on its own thread: of every step, of the end, and of why there was none.

    looked: the lesson knows another strength of the noise. ended: why no lesson came of it, and whether that
    was an error.
    """

    step: Callable[[Step], None]
    finished: Callable[[Lesson], None]
    looked: Callable[[Lesson, Frames], None]
    ended: Callable[[str, bool], None]


#: held while libraries are loaded, which two threads at once may fail at
_loading = threading.Lock()
#: threads that were started, and whether all are to come to their end
_threads: list[threading.Thread] = []
_ending = threading.Event()


def start(function: Callable[..., None], *arguments: Any) -> None:
    """function(*arguments) on a thread of its own."""
    _threads[:] = [t for t in _threads if t.is_alive()]
    _threads.append(threading.Thread(target=function, args=arguments, daemon=True, name="kolmo-explore"))
    _threads[-1].start()


def end(seconds: float) -> bool:
    """Have all threads stop; whether they did within these seconds.

    An interpreter that ends while one of them computes is aborted by it.
    """
    _ending.set()
    last = time.monotonic() + seconds
    for thread in _threads:
        thread.join(max(0.0, last - time.monotonic()))
    return not any(thread.is_alive() for thread in _threads)


def prepare() -> None:
    """Load libraries and compiled kernels: the first training takes seconds less."""
    # whatever comes of it, nobody sees it
    with _loading, contextlib.suppress(KolmoError, StoppedError):
        train(Settings(points=20, depth=4, cells=16, iterations=1), stop=_ending.is_set)


class Worker:
    """Trains for one page. post: see `Post`."""

    def __init__(self, post: Post, news: News) -> None:
        self._post, self._news = post, news
        self._busy, self._stop = threading.Event(), threading.Event()
        self._closed = threading.Event()
        self._latest: Lesson | None = None

    @property
    def busy(self) -> bool:
        """Whether a training is under way."""
        return self._busy.is_set()

    def start(self, settings: Settings) -> bool:
        """Begin a training; False where one is under way."""
        if self.busy or self._closed.is_set():
            return False
        self._busy.set()
        self._stop.clear()
        start(self._run, settings)
        return True

    def stop(self) -> None:
        """End the training after its present step."""
        self._stop.set()

    def close(self) -> None:
        """The page is gone: end everything, tell nothing."""
        self._closed.set()
        self._stop.set()

    def _tell(self, call: Callable[[], None]) -> None:
        if not self._closed.is_set():
            self._post(call)

    def _run(self, settings: Settings) -> None:
        lesson = None
        try:
            with _loading:
                pass  # wait for the end of it
            with section("explore"):
                lesson = train(settings, self._step, lambda: self._stop.is_set() or _ending.is_set())
        except StoppedError:
            self._end("Stopped. What is shown is the last result.", False)
        except KolmoError as error:
            self._end(one_line(error), True)
        except MemoryError:
            self._end("out of memory; take fewer cells, layers or points", True)
        except Exception as error:  # a fault of Kolmo's own: said on the page, which goes on
            self._end(
                f"internal error, please report it: {type(error).__name__}: {one_line(error, 300)}", True
            )
        if lesson is not None:
            self._latest = found = lesson
            self._busy.clear()
            self._tell(lambda: self._news.finished(found))
            self._look(found)

    def _step(self, step: Step) -> None:
        self._tell(lambda: self._news.step(step))

    def _end(self, reason: str, error: bool) -> None:
        self._busy.clear()
        self._tell(lambda: self._news.ended(reason, error))

    def _look(self, lesson: Lesson) -> None:
        """All strengths that the slider has, ahead of it, the nearest first."""
        for rate in sorted(RATES, key=lambda r: abs(r - lesson.settings.rate)):
            if self._closed.is_set() or _ending.is_set() or self.busy or self._latest is not lesson:
                return
            try:
                found = lesson.at(rate)
            except KolmoError:
                continue  # the slider asks again, and then it is said
            self._tell(lambda found=found: self._news.looked(lesson, found))  # type: ignore[misc]

"""One training at a time on a thread of its own, its news handed to whoever asked for it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass

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


def prepare() -> None:
    """Load libraries and compiled kernels: the first training takes seconds less."""
    with _loading, contextlib.suppress(KolmoError):  # whatever comes of it, nobody sees it
        train(Settings(points=20, depth=4, cells=16, iterations=1))


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
        threading.Thread(target=self._run, args=(settings,), daemon=True, name="kolmo-explore").start()
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
                lesson = train(settings, self._step, self._stop.is_set)
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
            if self._closed.is_set() or self.busy or self._latest is not lesson:
                return
            try:
                found = lesson.at(rate)
            except KolmoError:
                continue  # the slider asks again, and then it is said
            self._tell(lambda found=found: self._news.looked(lesson, found))  # type: ignore[misc]

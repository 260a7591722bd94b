"""How far a prediction is."""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """Counts images and calls `report(done, total)` after each change; a video counts as one until it is
    known how many frames it has."""

    def __init__(self, total: int, report: Callable[[int, int], None] | None = None):
        self._done, self._total, self._report = 0, total, report
        self._videos: dict[str, int] = {}

    def advance(self) -> None:
        """Count an image or frame as done."""
        self._done += 1
        self._changed()

    def expect(self, video: str, frames: int) -> None:
        """Set how many frames of a video are to come, the first time that it is called for it."""
        if video not in self._videos:
            self.finish(video, frames)

    def finish(self, video: str, frames: int) -> None:
        """Set the final frame count of a video."""
        self._total += frames - self._videos.get(video, 1)
        self._videos[video] = frames
        self._changed()

    def _changed(self) -> None:
        if self._report is not None:
            self._report(self._done, self._total)

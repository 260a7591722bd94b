"""Predict files into a folder, with reading, computing and writing at the same time.

Several threads read images; one thread reads the frames of videos in order. The caller's thread computes.
Several threads encode and write maps and pictures; one thread writes videos. Entries of maps.json and
failures are in the order of the inputs. Batches never span two units (see `dmtl.predict.parts`).
"""

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from dmtl.data.images import read_image
from dmtl.errors import ConfigError, DataError
from dmtl.predict.compute import BatchPredictor, PredictedBatch
from dmtl.predict.inputs import Failure, Input
from dmtl.predict.ledger import Ledger
from dmtl.predict.outputs import Frame, ImageMaps, Outputs
from dmtl.predict.pipeline import WriteBehind, batched, read_ahead
from dmtl.predict.video import VideoReader

MOST_PIXELS = 16_000_000  # maximum of pixels waiting to be written: about 30 bytes each in maps and pictures


@dataclass(frozen=True)
class VideoEnd:
    """The end of a video, after its last frame. `failure` says what was wrong with the rest, if anything."""

    item: Input
    frames: int
    rate: float
    failure: Failure | None


class Stream:
    """One run over many files. Results are added to `ledger`."""

    def __init__(
        self,
        predict: BatchPredictor,
        outputs: Outputs,
        ledger: Ledger,
        report: Callable[[int, int], None] | None,
        *,
        every: int,
        frames: int | None,
    ):
        self.predict, self.outputs, self.ledger, self.report = predict, outputs, ledger, report
        self.every, self.frames = every, frames
        self._done = self._total = 0
        self._without_pictures: set[Input] = set()  # videos whose pictures cannot be written
        self._unit_of: dict[Input, int] = {}
        self._videos: set[str] = set()  # paths
        self._frames_of: dict[Input, int] = {}  # expected frames of videos; until it is known, 1
        cores = os.cpu_count() or 1
        self.reading, self.writing = min(4, cores), min(16, cores)  # threads
        self._on_gpu = predict.device.type == "cuda"
        self._behind = WriteBehind(self._collect, self.writing + 2, MOST_PIXELS, ledger.waits)

    def run(self, units: Sequence[Sequence[Input]]) -> None:
        """Predict all inputs in these units.

        After an error, everything that was computed before is still written and collected, and all threads
        end.

        Raises:
            OSError: an output cannot be written.
            Exception: a thread raised an error that does not concern only one input.
        """
        with ExitStack() as stack:
            pools = (
                ThreadPoolExecutor(self.reading, "dmtl-read"),
                ThreadPoolExecutor(1, "dmtl-video"),
                ThreadPoolExecutor(self.writing, "dmtl-write", _give_way),
                ThreadPoolExecutor(1, "dmtl-encode", _give_way),
            )
            self._readers, self._decoder, self._writers, self._encoder = map(stack.enter_context, pools)
            self._unit_of = {item: number for number, unit in enumerate(units) for item in unit}
            inputs = list(self._unit_of)
            self._videos = {str(item.path) for item in inputs if item.is_video}
            self._total = len(inputs)
            try:
                self._stages(inputs)
            finally:
                try:
                    self._behind.drain()
                finally:
                    self._encoder.submit(self.outputs.end_videos).result()

    def _stages(self, inputs: Sequence[Input]) -> None:
        depth = 2 * self.predict.limit(1, 1) + self.reading
        lag = (
            1 if self._on_gpu else 0
        )  # number of unfinished batches on the GPU when the next one is launched
        launched: deque[tuple[list, PredictedBatch | None]] = deque()
        with closing(read_ahead(self._calls(inputs), depth, self.ledger.waits)) as results:
            for group in batched(results, self._kind, lambda kind: self.predict.limit(*kind[1:])):
                images = [frame.image for frame in group if isinstance(frame, Frame)]
                launched.append((group, self.predict(images) if images else None))
                while len(launched) > lag:
                    self._hand_over(*launched.popleft())
        while launched:
            self._hand_over(*launched.popleft())

    def _calls(self, inputs: Sequence[Input]) -> Generator[tuple[Executor, Callable]]:
        for item in inputs:
            if not item.is_video:
                yield self._readers, partial(self._read, item)
                continue
            clip = self._clip(item)
            try:
                # `next` after the end returns None.
                while clip.gi_frame is not None:  # type: ignore[attr-defined]  # generator functions have it
                    yield self._decoder, partial(next, clip, None)
            finally:
                self._decoder.submit(clip.close)

    def _clip(self, item: Input) -> Generator[Frame | VideoEnd]:
        """Yield the frames of a video, then a `VideoEnd`; only one thread runs this."""
        video = VideoReader(item.path, self.every, self.frames)
        count, failure = 0, None
        try:
            for number, image in video:
                count += 1
                prepared = self._prepared(image)
                yield Frame(item, prepared, number, video.rate, video.expected, video.time, video.time_base)
        except (DataError, ConfigError) as error:  # ConfigError: no PyAV
            failure = _failure(item, error)
        yield VideoEnd(item, count, float(video.rate), failure)

    def _read(self, item: Input) -> Frame | Failure:
        try:
            return Frame(item, self._prepared(read_image(item.path)))
        except DataError as error:
            return _failure(item, error)

    def _prepared(self, image: Tensor) -> Tensor:
        return image.pin_memory() if self._on_gpu else image

    def _hand_over(
        self, group: list[Frame | VideoEnd | Failure | None], computed: PredictedBatch | None
    ) -> None:
        """Pass results to the writing threads."""
        if computed is None:
            (other,) = group
            if isinstance(other, (VideoEnd, Failure)):
                self._behind.room()
                self._behind.add(self._encoder.submit(self._end, other))
            return
        computed.wait()
        frames = [frame for frame in group if isinstance(frame, Frame)]
        if (
            len(frames) > 1 and not computed.finite
        ):  # predict them one by one to find out which are not finite
            computed = self.predict.singly([frame.image for frame in frames])
            computed.wait()
        for frame, maps in zip(frames, computed.maps, strict=True):
            pixels = frame.size[0] * frame.size[1]
            self._behind.room(pixels)
            job = self._writers.submit(self._write, frame, maps)
            if frame.number is not None:
                job = self._encoder.submit(self._write_to_video, frame, job)
            self._behind.add(job, pixels)

    def _write(self, frame: Frame, maps: ImageMaps | DataError) -> tuple[Frame, dict, Any] | Failure:
        try:
            if isinstance(maps, DataError):
                raise maps
            return frame, *self.outputs.write(frame, maps)
        except (DataError, OSError) as error:
            return _failure(frame.item, _of_one_input(error), frame.number)

    def _write_to_video(self, frame: Frame, written: Future) -> tuple[Frame, dict, Any] | Failure:
        result = written.result()
        if isinstance(result, Failure):
            return result
        frame, entry, pictures = result
        if frame.item not in self._without_pictures:
            try:
                self.outputs.add_to_video(frame, pictures)
            except OSError as error:
                self._without_pictures.add(frame.item)
                return frame, entry, _failure(frame.item, _of_one_input(error))
        return frame, entry, None

    def _end(self, other: VideoEnd | Failure) -> VideoEnd | Failure:
        if isinstance(other, VideoEnd):
            self.outputs.end_video(other.item)
        return other

    def _collect(self, result: tuple[Frame, dict, Any] | Failure | VideoEnd) -> None:
        """Add a result to the ledger; called in the order of the inputs."""
        if isinstance(result, VideoEnd):
            item, frames = result.item, result.frames
            record = self.ledger.record(item.path)
            facts = {"input": str(item.path), "name": item.name, "frames": frames}
            if frames:
                record.video = {**facts, "frames_per_second": result.rate}
            if result.failure is not None:
                record.failures.append(result.failure)
            self.ledger.end(item.path)
            self._expect(item, frames)
        elif isinstance(result, Failure):
            self.ledger.record(result.path).failures.append(result)
            if result.path not in self._videos:
                self.ledger.end(result.path)
            self._done += 1
        else:
            frame, entry, other = result
            record = self.ledger.record(frame.item.path)
            record.images.append(entry)
            if isinstance(other, Failure):
                record.failures.append(other)
            if frame.number is None:
                self.ledger.end(frame.item.path)
            elif frame.item not in self._frames_of:
                self._expect(frame.item, frame.expected)
            self._done += 1
        if self.report is not None:
            self.report(self._done, self._total)

    def _kind(self, result: object) -> tuple[int, int, int] | None:
        """Return the unit and the size of an image, which all images of a batch share; None for others."""
        return (self._unit_of[result.item], *result.size) if isinstance(result, Frame) else None

    def _expect(self, video: Input, frames: int) -> None:
        self._total += frames - self._frames_of.get(video, 1)
        self._frames_of[video] = frames


def _give_way() -> None:
    """Lower the priority of this thread, because computing threads wait for each other: one delay delays all.

    With a small model on two cores, this gave a quarter more images per second.
    """
    if sys.platform == "linux":  # on other systems, priorities belong to the process and not to the thread
        os.nice(10)


def _of_one_input(error: Exception) -> Exception:
    """Return an output error that concerns only one input (because of its name); raise all others."""
    if not isinstance(error, OSError):
        return error
    if error.errno != errno.ENAMETOOLONG:
        raise error
    return DataError(error.strerror)


def _failure(item: Input, error: Exception, number: int | None = None) -> Failure:
    reason = str(error).removeprefix(f"{item.path}: ")
    return Failure(str(item.path), reason if number is None else f"frame {number}: {reason}")

"""Read the frames of video files, and write video files, with PyAV (`pip install 'dmtl[video]'`)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmtl.errors import ConfigError, DataError, one_line
from dmtl.runtime.files import temporary_name, write_atomically

SUFFIXES = (
    ".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".qt", ".mj2", ".3gp", ".3g2", ".f4v", ".flv", ".ts",
    ".m2t", ".mts", ".m2ts", ".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".wmv", ".asf", ".ogv", ".mxf",
    ".nut", ".dv", ".y4m", ".ivf", ".divx", ".h264", ".h265", ".hevc", ".mjpeg", ".mjpg", ".264", ".265",
    ".tp", ".trp", ".mod", ".tod", ".ogm", ".rm",
)  # fmt: skip
_DEFAULT_RATE = Fraction(25)
_DEFAULT_BASE = Fraction(1, 30_000)
_SHORT = 0.5  # seconds that may be missing at the end of an intact file, because durations are often rounded


def require_av() -> ModuleType:
    """Import PyAV; raise a ConfigError that says how to install it if it is missing."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"video files need PyAV, which cannot be imported ({error}): pip install 'dmtl[video]'"
        ) from None
    return av


class VideoReader:
    """Iterate over the frames of one video file, in order.

    Args:
        path: the file.
        every: yield every n-th frame, beginning with the first.
        frames: maximum number of frames; None: all.

    Attributes, known after the first frame:
        rate: average number of frames yielded per second of the video.
        expected: estimated number of frames that will be yielded; 1 if the file does not say.
        time: time of the last frame in seconds after the first; computed from the rate if the file does not
            say.
        time_base: unit of the file's times in seconds.
    """

    def __init__(self, path: Path, every: int = 1, frames: int | None = None):
        self.path, self.every, self.frames = path, every, frames
        self.rate, self.expected = _DEFAULT_RATE, 1
        self.time, self.time_base = Fraction(0), _DEFAULT_BASE

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (number in the file, uint8 [3, H, W] upright) for each frame.

        Raises:
            DataError: the file is not a video, is damaged or truncated; raised after the readable frames.
        """
        av = require_av()
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self.path}: cannot be read ({one_line(error)}), expected a video") from None
        with container:
            if not container.streams.video:
                raise DataError(f"{self.path}: contains no video stream")
            stream = container.streams.video[0]
            stream.thread_type = (
                "SLICE"  # with frame threads, an error and the frames before it would be lost
            )
            duration = _duration(container, stream)
            rate = next(
                (r for r in (stream.average_rate, stream.guessed_rate) if r and r < 1000), _DEFAULT_RATE
            )
            self.rate, self.time_base = rate / self.every, stream.time_base or _DEFAULT_BASE
            self.expected = self._expected(stream.frames or round((duration or 0) * rate))
            yield from self._taken(av, container, stream, duration)

    def _taken(
        self, av: ModuleType, container: Any, stream: Any, duration: float | None
    ) -> Iterator[tuple[int, Tensor]]:
        end, taken, clock = 0.0, 0, _Clock(1 / (self.rate * self.every))
        for number, frame in enumerate(_decoded(av, container, stream, self.path)):
            self.time = clock(frame)
            if number % self.every == 0:
                if taken == self.frames:
                    return
                yield number, _upright(frame)
                taken += 1
            if frame.time is not None:
                last = float(frame.duration * stream.time_base) if frame.duration else 0.0
                end = max(end, frame.time + last - (stream.start_time or 0) * float(stream.time_base))
        if not taken:
            raise DataError(f"{self.path}: damaged or truncated (it has no frame), expected a complete video")
        if duration is not None and end + _SHORT < duration:
            raise DataError(
                f"{self.path}: damaged or truncated (ends after {end:.1f} of {duration:.1f} s), "
                "expected a complete video"
            )

    def _expected(self, count: int) -> int:
        count = max(1, -(-count // self.every))
        return count if self.frames is None else min(count, self.frames)


class _Clock:
    """Compute the times of a video's frames, in seconds after the first.

    Some frames have no time, or one that is not later than the frame before (in containers that do not
    support reordered frames). Their time is computed from the rate.
    """

    def __init__(self, step: Fraction):
        self._step = step
        self._start: Fraction | None = None
        self._time = -step

    def __call__(self, frame: Any) -> Fraction:
        time = self._time + self._step
        if frame.pts is not None and frame.time_base:
            shown = frame.pts * frame.time_base
            self._start = shown - time if self._start is None else self._start
            time = shown - self._start if shown - self._start > self._time else time
        self._time = time
        return time


class VideoWriter:
    """Write several videos of the same frames, one for each picture.

    They are H.264 in MP4, or MPEG-4 if there is no H.264 encoder. The complete files appear when `close` is
    called.

    Args:
        paths: caption of a picture -> file.
        rate: average number of frames per second.
        time_base: unit of times in seconds, rounded if MPEG-4 cannot represent it; None: 1 / rate.
    """

    def __init__(self, paths: dict[str, Path], rate: Fraction, time_base: Fraction | None = None):
        self.rate, self.frames = _encodable(rate), 0
        base = 1 / self.rate if time_base is None else time_base
        base = base if max(base.numerator, base.denominator) < 2**16 else _DEFAULT_BASE
        self._files = {caption: _File(path, self.rate, base) for caption, path in paths.items()}

    def add(self, pictures: dict[str, np.ndarray], time: Fraction | None = None) -> None:
        """Add one frame.

        Args:
            pictures: caption -> uint8 [H, W, 3].
            time: time of the frame in seconds after the first one; None: computed from the rate.

        Raises:
            OSError: a file cannot be written; the message names it.
        """
        time = self.frames / self.rate if time is None else time
        for caption, file in self._files.items():
            file.add(pictures[caption], time)
        self.frames += 1

    def close(self) -> None:
        """Finish all files; raise OSError if one cannot be written. No partial file is left in that case."""
        try:
            for file in self._files.values():
                file.finish()
        finally:
            self.discard()

    def discard(self) -> None:
        """Delete unfinished files."""
        for file in self._files.values():
            file.discard()


class _File:
    """A video that is being written to a temporary file next to its final path."""

    def __init__(self, path: Path, rate: Fraction, base: Fraction):
        self.path, self._rate, self._base, self._last = path, rate, base, -1
        self._part: str | None = None
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture_HW3: np.ndarray, time: Fraction) -> None:
        av = require_av()
        # Encoders only accept even sides.
        margin = [(0, n % 2) for n in picture_HW3.shape[:2]]
        picture_HW3 = np.pad(picture_HW3, [*margin, (0, 0)], mode="edge")
        with self._errors(av):
            if self._container is None:
                self._open(av, *picture_HW3.shape[:2])
            frame = av.VideoFrame.from_ndarray(picture_HW3, format="rgb24")
            if (frame.width, frame.height) != (self._stream.width, self._stream.height):
                frame = frame.reformat(self._stream.width, self._stream.height)
            self._last = max(self._last + 1, round(time / self._base))  # encoders need increasing times
            frame.pts, frame.time_base = self._last, self._base
            self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        part = self._part
        if self._container is None or part is None:
            return
        with self._errors(require_av()):
            self._container.mux(self._stream.encode())
            self._container.close()
        self._container = None
        write_atomically(self.path, lambda temporary: os.replace(part, temporary))
        self._part = None

    def discard(self) -> None:
        if self._container is not None:
            with suppress(require_av().FFmpegError, OSError):  # an earlier error is the one to report
                self._container.close()
            self._container = None
        if self._part is not None and os.path.exists(self._part):
            os.unlink(self._part)
        self._part = None

    def _open(self, av: ModuleType, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.lstat(self.path)  # an impossible file name must fail here, not after the last frame
        handle, self._part = tempfile.mkstemp(**temporary_name(self.path))
        os.close(handle)
        codec, options = _encoder(av)
        self._container = av.open(self._part, "w", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream(codec, rate=self._rate, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = self._base

    @contextmanager
    def _errors(self, av: ModuleType) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            number = getattr(error, "errno", None)
            raise OSError(number, f"cannot write {self.path}: {one_line(error)}") from None


def _decoded(av: ModuleType, container: Any, stream: Any, path: Path) -> Iterator:
    """Yield all readable frames; then raise DataError if the file is damaged."""
    try:
        for packet in container.demux(stream):
            yield from packet.decode()
        return
    except av.FFmpegError as error:
        damage = one_line(error)
    with suppress(av.FFmpegError):  # flush the frames that the decoder still holds
        yield from stream.codec_context.decode(None)
    raise DataError(f"{path}: damaged or truncated ({damage}), expected a complete video")


def _upright(frame: Any) -> Tensor:
    """Return a frame as uint8 [3, H, W], mirrored and turned by quarters as the file's display matrix says.

    The matrix maps column p and row q to column a p + c q and row b p + d q.
    """
    pixels = frame.to_ndarray(format="rgb24")
    found = [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    if found:
        a, b, _, c, d = np.frombuffer(found[0], np.int32)[:5].tolist()
        if abs(a) < abs(b):
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _duration(container: Any, stream: Any) -> float | None:
    """Return the duration of the video in seconds; None if only the file's sound may have this duration."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1
    return container.duration / 1e6 if container.duration and alone else None


def _encodable(rate: Fraction) -> Fraction:
    """Return the nearest rate that MPEG-4 can represent: numerator and denominator below 2^16."""
    rate = Fraction(rate).limit_denominator(1001)
    return rate if 0 < rate.numerator < 2**16 else Fraction(max(1, min(round(rate), 1000)))


def _encoder(av: ModuleType) -> tuple[str, dict[str, str]]:
    for name, options in (("libx264", {"crf": "18", "preset": "veryfast"}), ("libopenh264", {"b": "8M"})):
        try:
            av.codec.Codec(name, "w")
        except av.codec.codec.UnknownCodecError:
            continue
        return name, options
    return "mpeg4", {"flags": "+qscale", "global_quality": "354"}  # 3 in units of 1 / 118

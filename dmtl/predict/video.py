"""Video files as frames, and frames as video files, through PyAV (`pip install 'dmtl[video]'`)."""

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
_SHORT = 0.5  # seconds that may be missing at the end of a sound file, whose duration is often rounded


def require_av() -> ModuleType:
    """PyAV, or a ConfigError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"video files need PyAV, which cannot be imported ({error}): pip install 'dmtl[video]'"
        ) from None
    return av


class VideoReader:
    """The frames of one video file, in order.

    Args:
        path: of the file.
        every: take every n-th frame, beginning with the first.
        frames: maximum number of frames.

    Attributes, known once the first frame is there:
        rate: frames taken per second of the video, on average.
        expected: how many frames there will be (an estimate, 1 where the file does not say).
        time: of the last frame, in seconds after the first; by the rate where the file does not say.
        time_base: seconds in which the file counts time.
    """

    def __init__(self, path: Path, every: int = 1, frames: int | None = None):
        self.path, self.every, self.frames = path, every, frames
        self.rate, self.expected = _DEFAULT_RATE, 1
        self.time, self.time_base = Fraction(0), _DEFAULT_BASE

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (number in the file, uint8 [3, H, W] upright). If the file is not a video, damaged or cut
        short, raise DataError after the frames that can be read."""
        av = require_av()
        try:
            container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self.path}: cannot be read ({one_line(error)}), expected a video") from None
        with container:
            if not container.streams.video:
                raise DataError(f"{self.path}: no video in it, expected {', '.join(SUFFIXES)}")
            stream = container.streams.video[0]
            stream.thread_type = "SLICE"  # threads over frames lose the frames before an error, and the error
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
            raise DataError(f"{self.path}: damaged or truncated (no frame in it), expected a complete video")
        if duration is not None and end + _SHORT < duration:
            raise DataError(
                f"{self.path}: damaged or truncated (ends after {end:.1f} of {duration:.1f} s), "
                "expected a complete video"
            )

    def _expected(self, count: int) -> int:
        count = max(1, -(-count // self.every))
        return count if self.frames is None else min(count, self.frames)


class _Clock:
    """Times of the frames of a video, in seconds after the first.

    A frame without a time, or with one that is not after the frame before (containers that know no reordered
    frames), follows by the rate.
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
    """Several videos of the same frames, one for each picture: H.264 in MP4 (MPEG-4 if there is no H.264
    encoder).

    The files appear, whole, when `close` is called.

    Args:
        paths: caption of a picture -> file.
        rate: frames per second, on average.
        time_base: seconds in which time is counted, as far as MPEG-4 can state it; None: 1 / rate.
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
            time: when it is shown, in seconds after the first; None: by the rate.

        Raises:
            OSError: it cannot be written; the message names the file.
        """
        time = self.frames / self.rate if time is None else time
        for caption, file in self._files.items():
            file.add(pictures[caption], time)
        self.frames += 1

    def close(self) -> None:
        """Finishes all files; OSError when one cannot be written, and then none is left half."""
        try:
            for file in self._files.values():
                file.finish()
        finally:
            self.discard()

    def discard(self) -> None:
        """Drops what is not finished."""
        for file in self._files.values():
            file.discard()


class _File:
    """One video that is being written, in a temporary file next to its final place."""

    def __init__(self, path: Path, rate: Fraction, base: Fraction):
        self.path, self._rate, self._base, self._last = path, rate, base, -1
        self._part: str | None = None
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture_HW3: np.ndarray, time: Fraction) -> None:
        av = require_av()
        # Encoders take even sides only.
        margin = [(0, n % 2) for n in picture_HW3.shape[:2]]
        picture_HW3 = np.pad(picture_HW3, [*margin, (0, 0)], mode="edge")
        with self._errors(av):
            if self._container is None:
                self._open(av, *picture_HW3.shape[:2])
            frame = av.VideoFrame.from_ndarray(picture_HW3, format="rgb24")
            if (frame.width, frame.height) != (self._stream.width, self._stream.height):
                frame = frame.reformat(self._stream.width, self._stream.height)
            self._last = max(self._last + 1, round(time / self._base))  # encoders want times that grow
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
            with suppress(require_av().FFmpegError, OSError):  # an earlier error is being told
                self._container.close()
            self._container = None
        if self._part is not None and os.path.exists(self._part):
            os.unlink(self._part)
        self._part = None

    def _open(self, av: ModuleType, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.lstat(self.path)  # a name that no file can have fails now, not after the last frame
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
    """All frames that can be had; then DataError if there was damage."""
    try:
        for packet in container.demux(stream):
            yield from packet.decode()
        return
    except av.FFmpegError as error:
        damage = one_line(error)
    with suppress(av.FFmpegError):  # what the decoder still holds
        yield from stream.codec_context.decode(None)
    raise DataError(f"{path}: damaged or truncated ({damage}), expected a complete video")


def _upright(frame: Any) -> Tensor:
    """uint8 [3, H, W], mirrored and turned as the file's display matrix says, to a quarter.

    The matrix takes column p and row q to column a p + c q and row b p + d q.
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
    """Seconds of video that the file promises; None where only its sound may be so long."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    alone = len(container.streams) == 1
    return container.duration / 1e6 if container.duration and alone else None


def _encodable(rate: Fraction) -> Fraction:
    """A rate that MPEG-4 can state: both parts below 2^16."""
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

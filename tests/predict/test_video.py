"""Video files to frames and back, and what becomes of damaged ones."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dmtl.errors import ConfigError, DataError
from dmtl.predict.video import SUFFIXES, VideoReader, VideoWriter, require_av

UNITY = "00010000 00000000 00000000 00000000 00010000 00000000"
CLOCKWISE = "00000000 00010000 00000000 FFFF0000 00000000 00000000"


@pytest.fixture
def av():
    return pytest.importorskip("av")


def film(path, count=30, rate=10, height=48, width=64, codec="libx264", noise=False):
    """Frame i is grey of brightness 8 i with a white band above, or noise."""
    import av

    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=rate)
        format = {"mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.width, stream.height, stream.pix_fmt = width, height, format
        stream.codec_context.gop_size = 5
        for i in range(count):
            picture = np.full((height, width, 3), 8 * i % 256, np.uint8)
            picture[:8] = 255
            if noise:
                picture = rng.integers(0, 256, picture.shape, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


CODECS = {
    **dict.fromkeys((".mov", ".avi", ".divx"), "mpeg4"),
    **dict.fromkeys((".mpg", ".mpeg", ".mpe", ".vob", ".m2v", ".mxf", ".mod", ".tod"), "mpeg2video"),
    **dict.fromkeys((".webm", ".ogv", ".ogm", ".ivf"), "libvpx"),
    **dict.fromkeys((".wmv", ".asf"), "wmv2"),
    **dict.fromkeys((".h265", ".265", ".hevc"), "libx265"),
    **dict.fromkeys((".mjpeg", ".mjpg"), "mjpeg"),
    ".m1v": "mpeg1video",
    ".flv": "flv",
    ".rm": "rv20",
    ".dv": "dvvideo",
    ".y4m": "rawvideo",
}
WRITTEN_AS = {
    **{".qt": ".mov", ".mj2": ".mov", ".mpe": ".mpg", ".divx": ".avi", ".mjpg": ".mjpeg", ".tp": ".ts"},
    **{".trp": ".ts", ".mod": ".mpg", ".tod": ".mpg", ".ogm": ".ogv", ".264": ".h264", ".265": ".h265"},
}
RAW = (
    ".m1v",
    ".m2v",
    ".h264",
    ".264",
    ".h265",
    ".265",
    ".hevc",
    ".mjpeg",
    ".mjpg",
)  # no container, so no reliable rate


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_frames_of_every_container(av, tmp_path, suffix):
    rate = 25 if suffix in (".m1v", ".dv", ".mxf") else 10
    size = {"height": 576, "width": 720} if suffix == ".dv" else {}
    path = film(
        tmp_path / f"a{WRITTEN_AS.get(suffix, suffix)}", 12, rate, codec=CODECS.get(suffix, "libx264"), **size
    )
    reader, times = VideoReader(path.rename(path.with_suffix(suffix))), []
    frames = [(number, image, times.append(reader.time)) for number, image in reader]
    assert [number for number, *_ in frames] == list(range(12))
    if suffix not in RAW:
        assert reader.rate == rate
        assert times == pytest.approx([number / rate for number in range(12)], abs=0.002)
    for number, image, _ in frames:
        assert image.is_contiguous() and (size or image.shape == (3, 48, 64))
        assert abs(float(image[:, 20:].float().mean()) - 8 * number) < 6 and image[:, :6].min() > 240


def test_every_nth_and_at_most(av, tmp_path):
    path = film(tmp_path / "a.mp4")
    reader = VideoReader(path, every=7)
    assert [n for n, _ in reader] == [0, 7, 14, 21, 28] and reader.rate == Fraction(10, 7)
    assert reader.expected == 5
    reader = VideoReader(path, every=3, frames=4)
    assert [n for n, _ in reader] == [0, 3, 6, 9] and reader.expected == 4


def test_rotation_is_applied(av, tmp_path):
    """A telephone held upright writes lying frames and a matrix that turns them."""
    path = film(tmp_path / "a.mp4", count=2)
    content = path.read_bytes()
    at = content.index(bytes.fromhex(UNITY), content.index(b"tkhd"))
    path.write_bytes(content[:at] + bytes.fromhex(CLOCKWISE) + content[at + 24 :])
    (_, image), _ = VideoReader(path)
    assert image.shape == (3, 64, 48) and image[:, :, -6:].min() > 240 and image[:, :, :30].max() < 30


ONE, NONE, MINUS = "00010000", "00000000", "FFFF0000"
DISPLAYED = {  # a, b, c, d of the matrix -> how players show it
    (ONE, NONE, NONE, ONE): lambda x: x,
    (MINUS, NONE, NONE, ONE): np.fliplr,
    (ONE, NONE, NONE, MINUS): np.flipud,
    (MINUS, NONE, NONE, MINUS): lambda x: np.rot90(x, 2),
    (NONE, ONE, MINUS, NONE): lambda x: np.rot90(x, -1),
    (NONE, MINUS, ONE, NONE): np.rot90,
    (NONE, ONE, ONE, NONE): lambda x: x.swapaxes(0, 1),
    (NONE, MINUS, MINUS, NONE): lambda x: np.rot90(x, 2).swapaxes(0, 1),
    ("0000B505", "0000B505", "FFFF4AFB", "0000B504"): lambda x: x,  # 45 degrees: the nearest quarter
}


@pytest.mark.parametrize("matrix", DISPLAYED)
def test_mirrored_and_turned_as_players_do(av, tmp_path, matrix):
    a, b, c, d = matrix
    path = film(tmp_path / "a.mp4", count=1, noise=True)
    ((_, stored),) = VideoReader(path)
    content = path.read_bytes()
    at = content.index(bytes.fromhex(UNITY), content.index(b"tkhd"))
    path.write_bytes(content[:at] + bytes.fromhex(f"{a}{b}{NONE}{c}{d}{NONE}") + content[at + 24 :])
    ((_, image),) = VideoReader(path)
    shown = DISPLAYED[matrix](stored.permute(1, 2, 0).numpy())
    assert np.array_equal(image.permute(1, 2, 0).numpy(), shown) and image.is_contiguous()


TICKS = (0, 1, 2, 10, 11, 30, 70, 71)


@pytest.mark.parametrize(("suffix", "base"), [(".mp4", 1000), (".mkv", 1000), (".ts", 90_000), (".mov", 600)])
@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_times_of_frames_are_kept(av, tmp_path, monkeypatch, suffix, base, encoder):
    """Read, and written again, of a video whose rate varies."""
    if encoder == "mpeg4":
        monkeypatch.setattr("dmtl.predict.video._encoder", lambda av: ("mpeg4", {}))
    with av.open(str(tmp_path / f"a{suffix}"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.codec_context.time_base = 64, 48, Fraction(1, 1000)
        for tick in TICKS:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 3 * tick, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 40 * tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reader, writer = VideoReader(tmp_path / f"a{suffix}", every=2), None
    for _, image in reader:
        writer = writer or VideoWriter({"a": tmp_path / "b.mp4"}, reader.rate, reader.time_base)
        writer.add({"a": image.permute(1, 2, 0).numpy()}, reader.time)
    writer.close()
    again, times = VideoReader(tmp_path / "b.mp4"), []
    for _, image in again:
        times.append(float(again.time))
        assert abs(float(image.float().mean()) - 3 * 25 * times[-1]) < 8
    assert times == pytest.approx([tick / 25 for tick in TICKS[::2]], abs=1 / 500)


def test_frames_without_times_follow_by_the_rate(av, tmp_path):
    reader = VideoReader(film(tmp_path / "a.h264", count=5))
    assert [float(reader.time) * float(reader.rate) for _ in reader] == pytest.approx([0, 1, 2, 3, 4])
    reader = VideoReader(
        film(tmp_path / "a.avi", count=12)
    )  # H.264 with frames out of order, which AVI does not know
    times = [float(reader.time) for _ in reader]
    assert times == sorted(set(times)) and times[0] == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_before_the_cut_are_kept(av, tmp_path, suffix):
    path = film(tmp_path / f"a{suffix}", noise=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = []
    with pytest.raises(DataError, match=f"a{suffix}: damaged or truncated .*, expected a complete video"):
        for number, _ in VideoReader(path):
            frames.append(number)
    assert 8 <= len(frames) < 20 and frames == list(range(len(frames)))
    assert len(list(VideoReader(path, frames=5))) == 5  # nobody looks at the damage


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"hello" * 100, "cannot be read .*, expected a video"),
        (b"", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_no_video(av, tmp_path, content, text):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(DataError, match=f"a.mp4: {text}"):
        list(VideoReader(tmp_path / "a.mp4"))


def test_sound_alone_is_no_video(av, tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="a.mp4: contains no video stream"):
        list(VideoReader(tmp_path / "a.mp4"))


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize(
    "rate", [Fraction(30000, 1001), Fraction(25, 3), Fraction(120000, 1001), Fraction(1, 2)]
)
def test_pictures_become_a_video_of_that_rate(av, tmp_path, monkeypatch, encoder, rate):
    if encoder == "mpeg4":
        create = av.codec.Codec

        def without_h264(name, mode):
            if "264" in name:
                raise av.codec.codec.UnknownCodecError(name)
            return create(name, mode)

        monkeypatch.setattr(av.codec, "Codec", without_h264)
    writer = VideoWriter({"a": tmp_path / "x" / "a.mp4", "b": tmp_path / "b.mp4"}, rate)
    picture = np.zeros((47, 63, 3), np.uint8)  # odd sides
    picture[:, :32] = (200, 30, 60)
    for i in range(12):
        writer.add({"a": np.roll(picture, 2 * i, 1), "b": picture})
    assert not (tmp_path / "b.mp4").exists()
    writer.close()
    reader = VideoReader(tmp_path / "x" / "a.mp4")
    frames = [image[:, :47, :63].permute(1, 2, 0).numpy() for _, image in reader]
    assert len(frames) == 12 == len(list(VideoReader(tmp_path / "b.mp4")))
    assert float(reader.rate) == pytest.approx(float(rate), rel=2e-3)
    for i, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - np.roll(picture, 2 * i, 1)).mean() < 6
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.name == {"libx264": "h264"}.get(encoder, encoder)
    assert {p.name for p in tmp_path.rglob("*.mp4")} == {"a.mp4", "b.mp4"}


def test_a_video_whose_frames_change_their_size(av, tmp_path):
    writer = VideoWriter({"a": tmp_path / "a.mp4"}, Fraction(5))
    for side in (32, 48, 17):
        writer.add({"a": np.full((side, side, 3), 200, np.uint8)})
    writer.close()
    frames = [image for _, image in VideoReader(tmp_path / "a.mp4")]
    assert [tuple(f.shape) for f in frames] == [(3, 32, 32)] * 3 and min(f.min() for f in frames) > 190


def test_a_video_that_cannot_be_written_is_named_and_leaves_nothing(av, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write .*file/a.mp4"):
        VideoWriter({"a": tmp_path / "file" / "a.mp4"}, Fraction(5)).add({"a": np.zeros((8, 8, 3), np.uint8)})
    writer = VideoWriter({"a": tmp_path / "v" / "a.mp4"}, Fraction(5))
    writer.add({"a": np.zeros((16, 16, 3), np.uint8)})
    writer.discard()
    assert list((tmp_path / "v").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk(av, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "mkstemp", lambda **kwargs: (os_open(), str(tmp_path / "part.mp4")))
    (tmp_path / "part.mp4").symlink_to("/dev/full")
    writer = VideoWriter({"a": tmp_path / "a.mp4"}, Fraction(5))
    rng = np.random.default_rng(0)
    with pytest.raises(OSError, match="cannot write .*a.mp4: No space left on device"):
        for _ in range(60):
            writer.add({"a": rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)})
        writer.close()
    writer.discard()
    assert not (tmp_path / "a.mp4").exists() and not (tmp_path / "part.mp4").is_symlink()


def os_open():
    import os

    return os.open(os.devnull, os.O_WRONLY)


def test_without_pyav_the_extra_is_named(without_av):
    with pytest.raises(ConfigError, match=r"video files need PyAV.*pip install 'dmtl\[video\]'"):
        require_av()

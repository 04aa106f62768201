# SPDX-License-Identifier: Apache-2.0
"""Videos: pictures with captions to an MP4 file that plays everywhere (H.264). The only file that imports av.

PyAV is ffmpeg as a library: its wheels bring all they need, and nothing else has to be installed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from otpr_policy.errors import EnvironmentSetupError, OutputError
from otpr_policy.files import atomic_path, refuse_existing
from otpr_sim.render import Picture

SUFFIX = ".mp4"
CODEC = "libx264"
QUALITY = {"crf": "20", "preset": "veryfast"}  # x264's: hardly any visible loss, encoded much faster than pictures are drawn


def check_writable(target: Path, overwrite: bool) -> None:
    """Finds the reasons why a video could not be written before the work that it shows is done.

    Raises:
        OutputError: ``target`` exists and may not be overwritten, or is not named as MP4.
        EnvironmentSetupError: what encodes is not installed.
    """
    if Path(target).suffix.lower() != SUFFIX:
        raise OutputError(f"{target}: videos are MP4; choose a name that ends in {SUFFIX}")
    refuse_existing(target, overwrite)
    _av()


class VideoWriter:
    """Encodes pictures of one size, one after the other."""

    def __init__(self, container: Any, frames_per_s: float) -> None:
        self._container = container
        self._rate = Fraction(frames_per_s).limit_denominator(1000)
        self._stream: Any = None
        self.frames = 0

    def add(self, picture: Picture) -> None:
        """Appends one frame, (height, width, 3) RGB, with height and width even. Raises ValueError for another size than before."""
        height, width = picture.shape[:2]
        if self._stream is None:
            self._start(width, height)
        if (self._stream.width, self._stream.height) != (width, height) or width % 2 or height % 2:
            raise ValueError(f"a frame of {width} x {height} in a video of {self._stream.width} x {self._stream.height}")
        frame = _av().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def finish(self) -> None:
        """Writes what the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def _start(self, width: int, height: int) -> None:
        self._stream = self._container.add_stream(CODEC, rate=self._rate, options=QUALITY)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"  # colour at half resolution: what players understand


@contextmanager
def writing(target: Path, frames_per_s: float) -> Iterator[VideoWriter]:
    """Gives a writer; ``target`` appears, or is replaced, when the block ends without an exception.

    Raises:
        OutputError: ``target`` cannot be written or encoding fails.
        EnvironmentSetupError: what encodes is not installed.
    """
    av = _av()
    try:
        with atomic_path(Path(target)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
            writer = VideoWriter(container, frames_per_s)
            yield writer
            writer.finish()
    except av.FFmpegError as error:
        raise OutputError(f"cannot write {target}: {error}") from error


def captioned(picture: Picture, text: str) -> Picture:
    """The picture above a band with one line of text; the result's height is even when the picture's is."""
    height, width = picture.shape[:2]
    band = 2 * max(8, height // 30)
    image = Image.new("RGB", (width, height + band), "black")
    image.paste(Image.fromarray(picture), (0, 0))
    font = ImageFont.load_default(band * 0.6)
    ImageDraw.Draw(image).text((band / 2, height + band / 2), text, fill="white", font=font, anchor="lm")
    return np.asarray(image)


def _av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise EnvironmentSetupError("videos need PyAV: pip install -c requirements/constraints.txt av") from error
    if CODEC not in av.codecs_available:
        raise EnvironmentSetupError(f"this build of PyAV has no encoder {CODEC}; pip's wheels of av have it")
    return av

"""What a call is about -> the bytes of its request: content read, pictures turned upright, frames taken, texts made.

Owns what the model sees of a data row; how it is spelled on the wire is `protocols/foundry.py`. `seen_row` and
`seen_text` say the same to those who read the model's answers: their numbers refer to what was seen.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from foundry_pipeline.asks import Ask
from foundry_pipeline.data_rows import DataRow
from foundry_pipeline.errors import RowUnavailable, shown
from foundry_pipeline.home import Run, Settings
from foundry_pipeline.protocols.foundry import FoundryRequests, picture_attachments
from foundry_pipeline.rows.content import ContentReader
from foundry_pipeline.rows.conversations import parse_conversation, turns_of, turns_until
from foundry_pipeline.rows.html_text import readable_text
from foundry_pipeline.rows.media import needs_turning, upright_jpeg_or_png

if TYPE_CHECKING:
    from foundry_pipeline.rows.video import Video

VIDEOS_OPEN = 4
"""Each may hold `max_row_bytes` and some decoded frames."""


def seen_row(run: Run, row: DataRow) -> DataRow:
    """The row with width and height of the picture that the model saw: as stored where the manifest keeps EXIF."""
    lies = run.model.exif == "keep" and row.exif_orientation in (5, 6, 7, 8)
    return replace(row, width=row.height, height=row.width) if lies else row


def seen_text(run: Run, row: DataRow, text: str) -> str:
    """The text that the model saw of a row's text; entities' offsets refer to it."""
    return readable_text(text) if row.media_type == "html" and run.model.html == "readable" else text


class Renderer:
    """Makes the requests of one run, in one event loop."""

    def __init__(self, run: Run, settings: Settings, requests: FoundryRequests, reader: ContentReader) -> None:
        self._run = run
        self._max_bytes = settings.max_row_bytes
        self._requests = requests
        self._reader = reader
        self._videos = _OpenVideos(reader)

    async def body(self, ask: Ask) -> bytes:
        """The request's body. Raises RowUnavailable where content cannot be had."""
        media_type = self._run.dataset.media_type
        if media_type == "image":
            return self._requests.pictures_body(await self._with_attachments(ask, [await self._picture(ask.row)]))
        if media_type == "video":
            return await self._frames_body(ask)
        text = await self._reader.text(ask.row)
        if media_type == "html":  # a large page takes seconds, and others want to be sent meanwhile
            text = await asyncio.to_thread(seen_text, self._run, ask.row, text)
        pictures = await self._with_attachments(ask, [])
        if media_type == "conversational":
            return self._conversation_body(ask, text, pictures)
        return self._requests.text_body(text, pictures)

    async def close(self) -> None:
        """Give the videos free that are still open."""
        await self._videos.close()

    async def _picture(self, row: DataRow) -> bytes:
        content = await self._reader.read(row)
        if self._run.model.exif == "keep" or not needs_turning(content.exif_orientation):
            return content.data
        return await asyncio.to_thread(upright_jpeg_or_png, content.data, content.mime_type)

    async def _with_attachments(self, ask: Ask, pictures: list[bytes]) -> list[bytes]:
        """The pictures, and those among the row's attachments behind them, where the run asks for them."""
        if not self._run.uses_image_attachments:
            return pictures
        for place, (_, value) in enumerate(picture_attachments(ask)):
            try:
                pictures.append(await self._picture(DataRow("", "", "image", value)))
            except RowUnavailable as err:
                raise RowUnavailable(err.code, f"picture attachment {place}: {err.message}") from None
            _check_together(pictures, self._max_bytes)
        return pictures

    async def _frames_body(self, ask: Ask) -> bytes:
        """One frame is sent as a picture is; several behind a text that names their numbers."""
        if not ask.frames:
            raise await self._why_no_frames(ask.row)
        upright = self._run.model.exif != "keep"
        frames = await self._videos.frames(ask.row, ask.frames, self._max_bytes, upright=upright)
        numbers = f"frames: {', '.join(map(str, ask.frames))}" if self._run.model.frames_per_call > 1 else ""
        return self._requests.pictures_body(await self._with_attachments(ask, frames), numbers)

    async def _why_no_frames(self, row: DataRow) -> RowUnavailable:
        if row.frame_count:
            asked = shown(list(self._run.sampling.frames))
            return RowUnavailable("row_no_frames", f"the video has {row.frame_count:,} frames, none of frames {asked}")
        await self._reader.read(row)
        return RowUnavailable(
            "row_changed", "the video could not be read when it was loaded; materialize data_rows again"
        )

    def _conversation_body(self, ask: Ask, text: str, pictures: Sequence[bytes]) -> bytes:
        messages, roles = parse_conversation(text), self._run.dataset.roles
        if self._run.generate == "every" and ask.message_id is not None and ask.answers is None:
            raise RowUnavailable("row_no_history", "an earlier turn has no answer that could be this turn's history")
        if ask.message_id is not None:
            turns = turns_until(messages, roles, ask.message_id, ask.answers)
        elif self._run.generate is not None:
            raise RowUnavailable("row_no_turn", "no message of a user that could be answered")
        else:
            turns = turns_of(messages, roles)
        return self._requests.conversation_body(turns, pictures)


def _check_together(pictures: Sequence[bytes], max_bytes: int) -> None:
    """The pictures of one request share the limit. One alone may be larger: turning it can make it so."""
    if len(pictures) > 1 and sum(map(len, pictures)) > max_bytes:
        message = f"the first {len(pictures)} pictures of the request are over max_row_bytes = {max_bytes:,} bytes"
        raise RowUnavailable("row_too_large", message)


@dataclass(slots=True, eq=False)
class _Opened:
    """A video that frames are taken from. `users` are the calls that hold or await it."""

    video: Video | None = None
    users: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class _OpenVideos:
    """The videos used last stay open: the calls about one video come one after the other, and each then decodes on."""

    def __init__(self, reader: ContentReader) -> None:
        self._reader = reader
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._slots = asyncio.Semaphore(VIDEOS_OPEN)

    async def frames(self, row: DataRow, numbers: Sequence[int], max_bytes: int, *, upright: bool) -> list[bytes]:
        """The frames as JPEG, in the order of `numbers`, together at most `max_bytes`. Raises RowUnavailable."""
        # The slot comes first, so that calls are served in their order: else each would find its video closed again.
        async with self._slots:
            opened = self._opened.setdefault(key := row.content_sha256 or row.row_data, _Opened())
            self._opened.move_to_end(key)
            opened.users += 1
            try:
                async with opened.turn:
                    opened.video = opened.video or await self._open(row)
                    return await asyncio.to_thread(_jpegs, opened.video, numbers, max_bytes, upright)
            finally:
                opened.users -= 1
                self._close_surplus()

    async def close(self) -> None:
        """Close all of them, once no thread decodes any more."""
        while self._opened:
            _, opened = self._opened.popitem()
            if opened.video is not None:
                await asyncio.to_thread(opened.video.close)

    async def _open(self, row: DataRow) -> Video:
        from foundry_pipeline.rows.video import Video

        content = await self._reader.read(row)
        return await asyncio.to_thread(Video, content.data, content.mime_type, self._reader.video_limits)

    def _close_surplus(self) -> None:
        idle = [key for key, opened in self._opened.items() if not opened.users]
        for key in idle[: max(0, len(self._opened) - VIDEOS_OPEN)]:
            if (video := self._opened.pop(key).video) is not None:
                video.close()


def _jpegs(video: Video, numbers: Sequence[int], max_bytes: int, upright: bool) -> list[bytes]:
    from foundry_pipeline.rows.video import frame_jpeg

    frames: list[bytes] = []
    for number in numbers:
        frames.append(frame_jpeg(video.picture(number, upright=upright)))
        _check_together(frames, max_bytes)
    return frames

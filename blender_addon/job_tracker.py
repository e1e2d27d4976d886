# SPDX-License-Identifier: GPL-3.0-or-later
"""The add-on's heartbeat: one persistent timer that moves news from the HTTP thread to what the panels show.

HTTP thread -> queue -> timer -> board -> `window_manager.kinesplat`. The backend owns the jobs and the disk holds our
records of them, so nothing here is lost with a file, an undo, or Blender itself. In background mode, where timers do
not run, `pump` and `wait` do the timer's work.
"""

import logging
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import bpy
import bpy.utils.previews

from . import capture, film, log_text, preferences, settings, stage, video_preview
from .client import BackendError, file_problem
from .http_events import BackendChanged
from .http_thread import HttpThread
from .job_board import Board, Row
from .job_records import JobRecords
from .subject import CaptureError, family

CAPTURE_INTERVAL = 0.02  # seconds between two ticks
BUSY_INTERVAL = 0.25
IDLE_INTERVAL = 1.0
DRAIN_SECONDS = 0.005  # of a tick
HOLD_SECONDS = 0.05  # a capture waits so long for the HTTP thread to stand still, then leaves it for the next tick
LOST_SECONDS = 30.0  # `wait` gives up on a backend that is gone for so long

log = logging.getLogger(__name__)
_tracker: "Tracker | None" = None


class Notice(NamedTuple):
    """What went wrong outside of any job, and what to do about it."""

    sentence: str = ""
    hint: str = ""
    code: str = ""


NOTHING = Notice()
OUTDATED_BY = {
    "not_installed": "running",
    "start_failed": "running",
    "stop_failed": "stopped",
}  # code of a notice -> state of the backend


class Tracker:
    """All that lives between enabling and disabling the add-on."""

    def __init__(self) -> None:
        self.records = JobRecords(preferences.data_folder())
        self.board = Board(self.records)
        self.capture: capture.CaptureRun | None = None
        self.sources: dict[str, str] = {}  # id by name, of the open file's objects that were captured
        self.notice = NOTHING
        self._thread: HttpThread | None = None
        self._previews = bpy.utils.previews.new()
        self._shown_previews: dict[str, int] = {}  # uid -> revision of the picture that is loaded
        self._films = film.Films()
        self.video = video_preview.VideoPreview()
        self._frame = 0  # of the films, counted on and on while they play
        self._mirrored: object = None  # what the window manager's properties were written from
        self.records.drop_unfinished_captures()
        self.board.load()

    def close(self) -> None:
        """End the thread, give up a capture, free the pictures."""
        self.cancel_capture()
        if self._thread:
            self._thread.stop()
        _forget_icons()
        bpy.utils.previews.remove(self._previews)
        self._films.close()
        self.video.close()

    @property
    def http(self) -> HttpThread:
        """The thread, started when first needed."""
        if self._thread is None:
            self._thread = HttpThread(self.records, self._client_id())
            self._thread.start()
            self._thread.connect(preferences.connection())
        return self._thread

    def _client_id(self) -> str:
        """This installation's id, or where it cannot be kept, one for now: clips can still be imported and played."""
        try:
            return self.records.client_id()
        except OSError as error:
            problem = file_problem(error, error.filename or self.records.folder)
            self.notice = Notice(str(problem), problem.hint or "Without this folder nothing can be generated.")
            return str(uuid.uuid4())

    def reconnect(self) -> None:
        """The preferences have changed."""
        if self._thread:
            self._thread.connect(preferences.connection())

    def start_backend(self) -> None:
        """Start the backend on this computer. Raises BackendError (`not_installed`) where there is none to start."""
        self.notice = NOTHING
        try:
            installation = preferences.installation()
        except BackendError as error:
            self.notice = Notice(str(error), error.hint, error.code)
            raise
        self.http.start_backend(installation, preferences.get().port)
        self.board.backend = BackendChanged("starting")  # now, for whoever generates in the next line of a script
        self.mirror()

    def fetch(self, row: Row) -> None:
        """Bring a job's result here."""
        if row.fetching is None:
            row.fetching, row.message, row.hint = 0.0, "", ""
            self.http.fetch(row.job_id, row.uid, row.result_kind)

    def build(self, row: Row, preset: str, gaussians: int) -> Row:
        """Have a clip made of the frames of a candidate; returns the new job's row.

        Raises:
            OSError: the frames or the request cannot be read or written here.
        """
        record = capture.build(self.records, self.board.record(row.uid), row.result, preset=preset, gaussians=gaussians)
        new = self.board.add(record)
        self.http.submit(new.uid)
        return new

    # Captures

    def begin_capture(self, context: bpy.types.Context) -> capture.CaptureRun:
        """Prepare a capture of what the panel says. Raises CaptureError."""
        self.notice = NOTHING
        self.capture = capture.begin(context, self.records)
        if self.capture.record.subject_uuid:
            self.sources[self.capture.record.subject] = self.capture.record.subject_uuid
        return self.capture

    def step_capture(self, patience: float = HOLD_SECONDS) -> Row | None:
        """Advance the capture; once it is complete and handed to the HTTP thread, the first of its jobs' rows.

        Nothing happens where the HTTP thread does not stand still within `patience` seconds: then try again later.

        Raises:
            CaptureError: it cannot go on; it is closed already.
        """
        run = self.capture
        try:
            with self.http.held(patience) as is_held:
                if not is_held or not run.step():
                    return None
        except BaseException:
            self.capture = None
            raise
        self.capture = None
        rows = [self.board.add(record) for record in run.jobs]
        for row in rows:
            self.http.submit(row.uid)
        return rows[0]

    def cancel_capture(self, reason: str = "") -> None:
        """Give up a capture, if one is on its way."""
        if self.capture:
            self.capture.close()
            self.capture = None
            self.notice = Notice(reason)

    def import_waits_for(self, row: Row) -> str:
        """What the import of a result must wait for, as the end of a sentence; empty where it need not."""
        if stage.is_rendering():
            return "the render has ended"
        record = self.board.record(row.uid)
        if self.capture and record:
            hidden, captured = (capture.find_source(one) for one in (record, self.capture.record))
            if hidden and captured and not set(family(hidden)).isdisjoint(family(captured)):
                return "the capture of its source has ended"
        return ""

    # The heartbeat

    def tick(self) -> float:
        """One beat; returns the seconds to the next one."""
        if stage.is_rendering():
            return BUSY_INTERVAL
        row = None
        if self.capture:
            try:
                row = self.step_capture()
            except CaptureError as error:
                self.notice = Notice(str(error))
            except Exception:
                log.exception("A capture failed")
                self.notice = Notice(
                    "The capture failed for a reason that was not foreseen.", "See the system console."
                )
        self.drain(DRAIN_SECONDS)
        self._import_what_was_asked_for()
        scene = _shown_scene()
        if not self.capture:
            self.video.step(scene)
        if self.mirror(select=row.uid if row else ""):
            _redraw()
        if self.capture:
            return CAPTURE_INTERVAL
        if self._is_playing():
            return film.INTERVAL
        return BUSY_INTERVAL if self.board.is_busy or scene.kinesplat.kind == "VIDEO" else IDLE_INTERVAL

    def drain(self, seconds: float = float("inf")) -> None:
        """Take news of the thread, for at most so many seconds."""
        if self._thread is None:
            return
        end = time.perf_counter() + seconds
        while not self._thread.events.empty():
            self.board.apply(self._thread.events.get_nowait())
            backend = self.board.backend
            if backend.code == "start_failed":  # the thread's next look says no more than that there is none
                self.notice = Notice(backend.sentence, backend.hint, backend.code)
            if time.perf_counter() > end:
                break
        for fetched in self.board.logs:
            log_text.fill(fetched)
        self.board.logs.clear()
        if self.board.notice:
            error = self.board.notice.error
            self.notice, self.board.notice = Notice(str(error), error.hint, error.code), None
        if OUTDATED_BY.get(self.notice.code) == self.board.backend.state:
            self.notice = NOTHING

    def mirror(self, *, select: str = "", force: bool = False) -> bool:
        """Write the board into the window manager's properties where it has changed; whether it had."""
        run = self.capture
        if self._is_playing():
            self._frame = int(time.monotonic() / film.INTERVAL)
        seen = (
            self.board.backend,
            self.notice,
            (run.text, run.fraction) if run else None,
            self._film_group(),
            self._frame,
            self.video.state,
            tuple(tuple(vars(row).values()) for row in self.board.rows.values()),
        )
        if seen == self._mirrored and not force and not select:
            return False
        self._mirrored = seen
        status = bpy.data.window_managers[0].kinesplat
        backend = self.board.backend
        status.backend_state, status.backend_code = backend.state, backend.code
        status.backend_message, status.backend_hint = backend.sentence, backend.hint
        status.notice, status.notice_hint, status.notice_code = self.notice
        status.capture_active = run is not None
        status.capture_text = run.text if run else ""
        status.capture_fraction = run.fraction if run else 0.0
        status.video_text, status.video_problem, status.video_icons, status.video_numbers = self.video.state
        self._mirror_jobs(status, select)
        return True

    def _mirror_jobs(self, status: bpy.types.PropertyGroup, select: str) -> None:
        rows = list(self.board.rows.values())
        is_cut_off = self.board.backend.state in ("stopped", "problem")
        self._films.keep_only(self.board.rows)
        if [job.uid for job in status.jobs] != [row.uid for row in rows]:
            active = status.jobs[status.active_job].uid if 0 <= status.active_job < len(status.jobs) else ""
            status.jobs.clear()
            for row in rows:
                status.jobs.add().uid = row.uid
            uids = [row.uid for row in rows]
            status.active_job = uids.index(active) if active in uids else 0
        for job, row in zip(status.jobs, rows, strict=True):
            job.name, job.job_id, job.state = row.name, row.job_id, row.state
            job.stage, job.detail, left = row.stage, row.detail, row.seconds_left
            if is_cut_off and row.state == "running":
                job.stage, job.detail, left = "Goes on once the backend runs", "", None
            job.fraction = row.fraction if row.fetching is None else row.fetching
            job.seconds_left = -1.0 if left is None else left
            job.ahead = row.ahead
            job.message, job.hint = row.message, row.hint
            job.is_live, job.has_result, job.is_fetching = row.is_live, row.has_result, row.fetching is not None
            job.shows_frames, job.group = row.result_kind == "frames", row.group or row.uid
            job.warnings = "\n".join(row.warnings)
            job.preview_icon, job.caption = self._icon(row), self._films.caption(row.uid)
        if group := self._film_group():
            uids = tuple(row.uid for row in rows if (row.group or row.uid) == group)
            status.candidates_alike = self._films.move_alike(uids)
        if select:
            status.active_job = next((index for index, row in enumerate(rows) if row.uid == select), 0)

    def _film_group(self) -> str:
        """The candidates whose films are to be seen: those of the selected job; empty where it has none."""
        job = settings.active_job(bpy.context)
        return job.group if job is not None and job.shows_frames else ""

    def _is_playing(self) -> bool:
        group = self._film_group()
        return (
            bool(group)
            and bpy.data.window_managers[0].kinesplat.is_playing
            and any(row.result is not None and (row.group or row.uid) == group for row in self.board.rows.values())
        )

    def _icon(self, row: Row) -> int:
        """Icon id of the job's preview picture, loaded anew when it has changed; 0 without one.

        Of frames that are here it is the one that is to be seen now.
        """
        if bpy.app.background:
            return 0
        has_film = row.result is not None and (row.group or row.uid) == self._film_group()
        if has_film and (icon := self._films.icon(row.uid, row.result, self._frame)):
            return icon
        if row.preview is None:
            return 0
        known = row.uid in self._previews
        if not known or self._shown_previews.get(row.uid) != row.preview_rev:
            self._previews.pop(row.uid, None)  # a collection refuses a key that it has; the icon stays the same
            picture = self._previews.load(row.uid, str(row.preview), "IMAGE", force_reload=True)
            _ = picture.image_size[:]  # reads the file now rather than while drawing, where it would flicker
            self._shown_previews[row.uid] = row.preview_rev
        return self._previews[row.uid].icon_id

    def _import_what_was_asked_for(self) -> None:
        for row in list(self.board.rows.values()):
            if row.import_into and row.result is not None and not self.import_waits_for(row):
                self._import(row)

    def _import(self, row: Row) -> None:
        """Import as if it were asked for now, in a window that shows the scene; in Edit Mode it waits for its end."""
        windows = bpy.data.window_managers[0].windows
        window = next((window for window in windows if window.scene.name == row.import_into), windows[0])
        with self.http.held(HOLD_SECONDS) as is_held:
            if not is_held:
                return
            # A timer's context may lack a window, hence the view layer and the screen that the user looks at.
            with bpy.context.temp_override(window=window):
                if bpy.context.mode != "OBJECT":
                    return
                row.import_into = ""
                try:
                    # True: an undo step of its own
                    bpy.ops.kinesplat.import_result("EXEC_DEFAULT", True, uid=row.uid)
                except RuntimeError as error:  # what the operator has reported
                    self.notice = Notice(str(error).removeprefix("Error: ").strip())


def tracker() -> Tracker:
    """The running tracker. Operators call it; it exists while the add-on is enabled."""
    if _tracker is None:
        raise RuntimeError("Kinesplat is not enabled")
    return _tracker


def reconnect() -> None:
    """Take up changed preferences."""
    if _tracker:
        _tracker.reconnect()


def pump(seconds: float = 0.0) -> None:
    """Do the timer's work for so many seconds. For background mode and scripts; blocks."""
    current = tracker()
    _ = current.http  # starts it
    end = time.monotonic() + seconds
    while True:
        current.drain()
        current.mirror()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, 0.05))


def wait(
    is_done: Callable[[], bool],
    timeout: float | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> None:
    """Pump until `is_done`. For background mode and scripts; blocks.

    Args:
        is_done: asked after each turn.
        timeout: seconds; None waits as long as the backend answers.
        on_change: called after each turn, for a progress bar that reads `window_manager.kinesplat`.

    Raises:
        BackendError: the backend was not there for LOST_SECONDS (its own words), or `timeout`.
    """
    start = last_seen = time.monotonic()
    while True:
        pump()
        on_change()
        if is_done():
            return
        now = time.monotonic()
        backend = tracker().board.backend
        is_over = timeout is not None and now - start > timeout
        if backend.state in ("running", "starting"):
            last_seen = now
        elif is_over or now - last_seen > LOST_SECONDS:
            sentence = backend.sentence or "The backend is not running."
            raise BackendError(backend.code or "not_running", sentence, backend.hint)
        if is_over:
            raise BackendError("timeout", f"The job has not ended within {timeout:.0f} s; it goes on in the backend.")
        time.sleep(0.05)


def wait_for_job(uid: str, timeout: float | None = None, on_change: Callable[[], None] = lambda: None) -> Row:
    """Pump until a job has ended and its result, if any, is here. Returns its row. Raises as `wait`."""

    def is_done() -> bool:
        row = tracker().board.find(uid)
        if row is not None and row.state == "succeeded" and row.result is None and not row.message:
            tracker().fetch(row)
        return row is None or not row.is_live

    wait(is_done, timeout, on_change)
    row = tracker().board.find(uid)
    if row is None:
        raise BackendError("job_unknown", "This job was removed.")
    return row


def _tick() -> float | None:
    if _tracker is None:
        return None
    try:
        return _tracker.tick()
    except Exception:  # a timer that raises is never called again
        log.exception("Kinesplat's job tracker stumbled and goes on")
        return IDLE_INTERVAL


def _shown_scene() -> bpy.types.Scene:
    """The scene of the first window."""
    windows = bpy.data.window_managers[0].windows
    return windows[0].scene if windows else bpy.context.scene


def _redraw() -> None:
    """Redraw the sidebars of all windows, and the preferences, which show the state of another computer's backend."""
    for window in bpy.data.window_managers[0].windows:
        for area in window.screen.areas:
            if area.type == "PREFERENCES":
                area.tag_redraw()
            if area.type == "VIEW_3D":
                for region in area.regions:
                    if region.type == "UI":
                        region.tag_redraw()


def _forget_icons() -> None:
    """Leave no number of a picture that is about to go: the panels of an add-on that is enabled again draw it first."""
    for wm in bpy.data.window_managers:
        wm.kinesplat.video_icons = (0, 0, 0)
        for job in wm.kinesplat.jobs:
            job.preview_icon = 0


@bpy.app.handlers.persistent
def _on_load_pre(*_) -> None:
    if _tracker:
        _tracker.cancel_capture("The capture was stopped, because another file was opened.")
        _tracker.sources.clear()
        for row in _tracker.board.rows.values():
            row.import_into = ""  # the other file did not ask for it


@bpy.app.handlers.persistent
def _on_load_post(*_) -> None:
    """The new file has brought a window manager of its own."""
    if _tracker:
        _tracker.mirror(force=True)


@bpy.app.handlers.persistent
def _on_undo_post(*_) -> None:
    """An undo has taken the ids of captured objects away, as Generate is no step of its own."""
    if _tracker:
        capture.give_ids(_tracker.sources)


def register() -> None:
    """Read what is on disk; with a window, start the timer and look for the backend."""
    global _tracker
    _tracker = Tracker()
    bpy.app.handlers.load_pre.append(_on_load_pre)
    bpy.app.handlers.load_post.append(_on_load_post)
    bpy.app.handlers.undo_post.append(_on_undo_post)
    bpy.app.handlers.redo_post.append(_on_undo_post)
    if not bpy.app.background:
        _ = _tracker.http
        bpy.app.timers.register(_tick, first_interval=0.1, persistent=True)


def unregister() -> None:
    """Stop everything. Jobs go on in the backend."""
    global _tracker
    if bpy.app.timers.is_registered(_tick):
        bpy.app.timers.unregister(_tick)
    for handlers, handler in (
        (bpy.app.handlers.load_pre, _on_load_pre),
        (bpy.app.handlers.load_post, _on_load_post),
        (bpy.app.handlers.undo_post, _on_undo_post),
        (bpy.app.handlers.redo_post, _on_undo_post),
    ):
        if handler in handlers:
            handlers.remove(handler)
    if _tracker:
        _tracker.close()
        _tracker = None

# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloading of published weights from the Hugging Face hub; an interrupted download goes on where it stopped.

The hub's own client says where a file is, how large, and its digest. Since huggingface_hub 2 it does not resume across
runs, so the bytes are fetched here. They gather in `.downloads` within the weights' folder and become visible only when
all are there and right. After that nothing needs the network.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from huggingface_hub.utils import build_hf_headers

from backend.models.checkpoints import CARD, DOWNLOADS
from backend.models.weights_convert import check_space, convert, differing, share, write_card
from backend.models.weights_registry import File, Source, Weights
from backend.progress import Run, UserError

CHUNK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
ATTEMPTS = 5  # without a single new byte
PAUSE = 2.0  # seconds before the next attempt
HUB_ERRORS = (OSError, ValueError, HfHubHTTPError.__bases__[0])  # the base: of its HTTP library, unreachable hosts too
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Remote:
    """A file as the hub has it now."""

    file: File
    url: str
    bytes: int
    etag: str  # the sha256 of large files

    @property
    def sha256(self) -> str | None:
        """The digest that the file must have: by our list, else by the hub; None for small files."""
        return self.file.sha256 or (self.etag if SHA256.fullmatch(self.etag) else None)


def fetch(
    weights: Weights,
    folder: Path,
    run: Run,
    *,
    accept_licence: bool = False,
    source: str = "",
    half: bool = False,
    keep_download: bool = False,
    endpoint: str | None = None,
) -> Path:
    """Download, check and, where they are pickles, convert weights; returns their folder.

    `source`: the repository to use; by default the first that has the files. `half`: converted weights in float16.
    `keep_download`: keep the pickles, too. `endpoint`: another hub than HF_ENDPOINT says.

    Raises:
        UserError: the licence is not accepted, only a person can fetch it, there is no space, no source has it, it is
            damaged, or it is not what the network expects.
        JobCancelled: the run was cancelled; what was downloaded is kept.
    """
    target = folder / weights.name
    if (target / CARD).is_file():
        return target
    if target.exists():
        message = f"{target} exists, and does not hold the whole of the weights {weights.name}."
        raise UserError("weights_exist", message, "Remove or rename it, then try again.")
    check_licence(weights, accept_licence)
    if not weights.sources:
        raise by_hand(weights)
    downloads = folder / DOWNLOADS / weights.name
    downloads.mkdir(parents=True, exist_ok=True)
    lock = FileLock(downloads.with_name(f"{weights.name}.lock"))
    try:
        with lock.acquire(timeout=0):
            return _fetch(weights, folder, downloads, run, source, half, keep_download, endpoint)
    except Timeout as error:
        message = f"Another program is fetching the weights {weights.name} just now."
        raise UserError("weights_busy", message, "Wait for it, or end it and try again.") from error


def _fetch(
    weights: Weights,
    folder: Path,
    downloads: Path,
    run: Run,
    source: str,
    half: bool,
    keep_download: bool,
    endpoint: str | None,
) -> Path:
    """What `fetch` does while nobody else does it."""
    used, remotes = choose_source(weights, source, endpoint)
    missing = sum(remote.bytes - _present(remote, downloads) for remote in remotes)
    check_space(folder, missing + (sum(remote.bytes for remote in remotes) if weights.is_pickle else 0))

    stages = {f"Downloading {remote.file.name}": remote.bytes for remote in remotes}
    whole = sum(stages.values())
    run.plan({**stages, "Checking": whole / 20, "Converting": whole / 5 if weights.is_pickle else 0})
    for remote in remotes:
        run.begin(f"Downloading {remote.file.name}")
        download(remote, downloads, run)
    run.begin("Checking")
    digests = check_digests(remotes, downloads, run)

    note = {"source": {"repository": used.repository, "revision": used.revision}}
    if weights.is_pickle:
        run.begin("Converting")
        pickle = downloads / next(remote.file.path for remote in remotes if remote.file.is_pickle)
        convert(weights, pickle, folder, run, half=half, note={**note, "downloaded": digests})
        if not keep_download:
            shutil.rmtree(downloads)
    else:
        differing(weights, downloads)
        for stray in downloads.rglob("*.part"):  # of a former version of a file
            stray.unlink()
        write_card(downloads, weights, note, digests)
        share(downloads)
        os.replace(downloads, folder / weights.name)
    run.finish()
    return folder / weights.name


def check_licence(weights: Weights, accepted: bool) -> None:
    """See that a licence which forbids commercial use, or may forbid it, has been accepted.

    Raises:
        UserError: it has not.
    """
    if weights.must_be_accepted and not accepted:
        verb = "forbids" if weights.commercial == "no" else "may forbid"
        raise UserError(
            "licence_not_accepted",
            f"The licence of {weights.name} {verb} commercial use: {weights.licence}. {weights.note}".rstrip(),
            f"Read {weights.licence_page} and, if you accept it, add --accept-licence.",
        )


def by_hand(weights: Weights) -> UserError:
    """What to tell about weights that no program can fetch."""
    names = " or ".join(file.name for file in weights.files)
    return UserError(
        "weights_by_hand",
        f"The weights {weights.name} are not on the Hugging Face hub. Download {names} from {weights.page}",
        "Then run: python -m backend weights convert FILE",
    )


def choose_source(weights: Weights, wanted: str, endpoint: str | None) -> tuple[Source, list[Remote]]:
    """The first source that has all files, of the wanted digests; or the wanted one.

    Raises:
        UserError: there is none; the message says for each why.
    """
    sources = [source for source in weights.sources if wanted in ("", source.repository)]
    if not sources:
        known = ", ".join(source.repository for source in weights.sources)
        message = f"{wanted} is not a source of {weights.name} that is known here."
        raise UserError("unknown_source", message, f"There are: {known}.")
    reasons = []
    for source in sources:
        try:
            return source, [look_up(file, source, endpoint) for file in weights.files]
        except GatedRepoError:
            reasons.append(f"{source.repository} wants you to agree to something on its page, and a token")
        except HUB_ERRORS as error:
            reasons.append(f"{source.repository}: {_first_line(error)}")
    raise UserError(
        "weights_unreachable",
        f"No source of {weights.name} can be used. {'; '.join(reasons)}.",
        f"Check the connection, or get the files by hand ({weights.licence_page}) and run: "
        "python -m backend weights convert FILE",
    )


def look_up(file: File, source: Source, endpoint: str | None) -> Remote:
    """Ask the hub about a file.

    Raises:
        ValueError: it is not the file of our list.
        OSError: it is not there, or the hub cannot be reached (or another of HUB_ERRORS).
    """
    url = hf_hub_url(source.repository, file.path, revision=source.revision, endpoint=endpoint)
    found = get_hf_file_metadata(url, timeout=TIMEOUT[0], endpoint=endpoint)
    if found.size is None or not found.etag:
        raise ValueError(f"it does not say how large {file.path} is")
    if file.bytes is not None and found.size != file.bytes:
        raise ValueError(f"{file.path} has {found.size} bytes instead of {file.bytes}")
    if file.sha256 and SHA256.fullmatch(found.etag) and found.etag != file.sha256:
        raise ValueError(f"{file.path} is another file there: its sha256 is {found.etag}")
    return Remote(file, url, found.size, found.etag)


def download(remote: Remote, downloads: Path, run: Run) -> Path:
    """Fetch the rest of a file, with a few new attempts where the connection breaks.

    Raises:
        UserError: the connection stays broken, the file does not end where it should, or the disk is full.
    """
    path, part = downloads / remote.file.path, _part(remote, downloads)
    if path.is_file() and path.stat().st_size == remote.bytes:
        return path
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while (begin := _size(part)) != remote.bytes:
        try:
            _append(remote, part, begin, lambda done: run.report(done, remote.bytes))
            problem = "the connection ended early"
        except requests.RequestException as error:
            problem = _first_line(error)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    "disk_full",
                    f"The disk of {part.parent} is full.",
                    "Free some space and run the same command again: what was downloaded is kept.",
                ) from error
            raise
        if _size(part) > remote.bytes:
            part.unlink()
        failures = 0 if _size(part) > begin else failures + 1
        if failures == ATTEMPTS:
            raise UserError(
                "download_failed",
                f"{remote.file.path} could not be downloaded: {problem}.",
                "Run the same command again: it goes on from there.",
            )
        if failures:
            time.sleep(PAUSE)
    os.replace(part, path)
    return path


def check_digests(remotes: list[Remote], downloads: Path, run: Run) -> dict[str, str]:
    """The sha256 of all files by path; one that is wrong is removed.

    Raises:
        UserError: one is wrong.
    """
    digests, done, whole = {}, 0, sum(remote.bytes for remote in remotes)
    for remote in remotes:
        digest = hashlib.sha256()
        with open(downloads / remote.file.path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                done += len(chunk)
                run.report(done, whole)
        found = digests[remote.file.path] = digest.hexdigest()
        if remote.sha256 and found != remote.sha256:
            (downloads / remote.file.path).unlink()
            raise UserError(
                "weights_damaged",
                f"{remote.file.path} has arrived damaged: its sha256 is {found} instead of {remote.sha256}.",
                "It has been removed. Run the same command again.",
            )
    return digests


def _append(remote: Remote, part: Path, begin: int, tell: Callable[[int], None]) -> None:
    """One request for all bytes from `begin` on."""
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        with open(part, "ab" if resumed else "wb") as file:
            done = begin if resumed else 0
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                done += len(chunk)
                tell(done)


def _part(remote: Remote, downloads: Path) -> Path:
    """Where a file gathers. Its name holds the digest, so that it never goes on as another file."""
    mark = hashlib.sha256(remote.etag.encode()).hexdigest()[:12]
    return downloads / f"{remote.file.path}.{mark}.part"


def _present(remote: Remote, downloads: Path) -> int:
    path = downloads / remote.file.path
    return min(_size(path) or _size(_part(remote, downloads)), remote.bytes)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")

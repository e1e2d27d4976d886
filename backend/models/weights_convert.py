# SPDX-License-Identifier: GPL-3.0-or-later
"""Pickled checkpoints become safetensors, once. A pickle is a program: it is read by another process, `pickle_worker`,
which takes tensors and nothing else, and everything after that reads safetensors only.
"""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from backend.interpreter import own_process
from backend.models.checkpoints import CARD, read_shapes
from backend.models.weights_registry import Weights, find, of_file
from backend.progress import Run, UserError
from backend.versions import versions
from blender_addon.contract.arrays import write_json
from blender_addon.contract.requests import file_sha256

CHUNK = 1 << 22
LEFT_OVER = ".converting-"  # begins the name of a folder in which a conversion works
MARGIN = 1 << 30  # bytes that stay free


def convert_file(
    file: Path, folder: Path, run: Run, *, name: str = "", half: bool = False, replace: bool = False
) -> list[Path]:
    """Convert what a person has downloaded: a checkpoint, or a zip archive of checkpoints. Returns the new folders.

    `name`: of the weights, where the file's name does not tell. `folder`: of all weights.

    Raises:
        UserError: the file is not known, not there, not safe, or not what the network expects.
        JobCancelled: the run was cancelled; nothing is left of it.
    """
    if not file.is_file():
        raise UserError("no_file", f"{file} does not exist.", "Name a file that has been downloaded.")
    members = _checkpoints_in(file)
    chosen = [find(name)] if name else of_file(file.name)
    if members is None:
        if not chosen:
            raise UserError(
                "unknown_weights",
                f"The file name {file.name} does not tell which weights these are.",
                "Say it with --name; `python -m backend weights list` shows the names.",
            )
        run.plan({f"Converting {file.name}": 1})
        run.begin(f"Converting {file.name}")
        return [convert(chosen[0], file, folder, run, half=half, replace=replace)]

    pairs = [(weights, member) for member in members for weights in chosen or of_file(PurePosixPath(member).name)]
    pairs = [(w, member) for w, member in pairs if PurePosixPath(member).name in {each.name for each in w.files}]
    if not pairs:
        found = ", ".join(sorted({PurePosixPath(member).name for member in members})[:8]) or "no checkpoints"
        raise UserError(
            "unknown_weights",
            f"{file} holds no weights that are known here, but {found}.",
            "`python -m backend weights list` shows which files are known.",
        )
    names = [PurePosixPath(member).name for _, member in pairs]
    run.plan({stage: 1 for name in names for stage in (f"Unpacking {name}", f"Converting {name}")})
    made = []
    for weights, member in pairs:
        with _unpacked(file, member, folder, run) as unpacked:
            made.append(convert(weights, unpacked, folder, run, half=half, replace=replace))
    return made


def convert(
    weights: Weights,
    file: Path,
    folder: Path,
    run: Run,
    *,
    half: bool = False,
    replace: bool = False,
    note: dict | None = None,
) -> Path:
    """Convert one checkpoint into `folder`/NAME, which appears complete or not at all. Returns it.

    `half`: floating-point tensors in float16. `replace`: even weights that are there already. `note`: for the card.

    Raises:
        UserError: it holds more than tensors, is damaged, not what the network expects, or there is no space.
        JobCancelled: the run was cancelled; nothing is left of it.
    """
    target = folder / weights.name
    if target.exists() and not replace:
        message = f"The weights {weights.name} are there already, in {target}."
        raise UserError("weights_exist", message, "Add --replace to convert them again.")
    folder.mkdir(parents=True, exist_ok=True)
    check_space(folder, file.stat().st_size)
    for old in folder.glob(f"{LEFT_OVER}{weights.name}-*"):  # of a process that was killed
        shutil.rmtree(old, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{LEFT_OVER}{weights.name}-", dir=folder))
    try:
        answer = _run_worker({
            "file": str(file.absolute()), "folder": str(work), "half": half,
            "strip": list(weights.strip), "drop": weights.drop,
        }, run)  # fmt: skip
        differing(weights, work)
        about = {"converted_from": {"file": file.name, "bytes": file.stat().st_size}, "half": half, **answer}
        write_card(work, weights, {**about, **(note or {})})
        share(work)
        _swap(work, target)
    except UserError as error:
        raise UserError(error.code, f"{file.name}: {str(error).rstrip('.')}.", error.hint) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def differing(weights: Weights, folder: Path) -> None:
    """See that the tensors in `folder` are those that the network expects, where that is known.

    Raises:
        UserError: they are not.
    """
    if difference := weights.keys and weights.differences(read_shapes(folder)):
        raise UserError(
            "weights_mismatch",
            f"These are not the tensors of {weights.name}: {difference}.",
            "It is a file of another network or release, or it is damaged.",
        )


def write_card(folder: Path, weights: Weights, note: dict, digests: dict[str, str] | None = None) -> None:
    """Note what lies in `folder`, with sizes and digests; from then on it counts as complete.

    `digests`: the sha256 of files by path, as far as they are known already.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != CARD:
            digest = (digests or {}).get(name) or file_sha256(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": digest}
    card = {
        "name": weights.name, "licence": weights.licence, "commercial_use": weights.commercial,
        **note, "files": files, "versions": versions(),
    }  # fmt: skip
    write_json(folder / CARD, card)


def share(folder: Path) -> None:
    """Let those read `folder` who may read the folder around it: temporary ones are for their owner alone."""
    mode = stat.S_IMODE(folder.parent.stat().st_mode)
    with contextlib.suppress(OSError):  # a disk without owners, such as exFAT
        for path in (folder, *folder.rglob("*")):
            path.chmod(mode if path.is_dir() else mode & 0o666)


def _run_worker(question: dict, run: Run) -> dict:
    """Let a process of its own read the pickle. However this ends, the process does, too."""
    command, environment = own_process("backend.models.pickle_worker", PYTHONDONTWRITEBYTECODE="1")
    with tempfile.TemporaryFile() as said:
        worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it died at once: what it said comes below
                worker.stdin.write(json.dumps(question).encode())
                worker.stdin.close()
            for line in worker.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise UserError(*answer["error"])
                if "done" not in answer:
                    return answer
                run.report(answer["done"], answer["whole"])
            code = worker.wait()
            said.seek(0)
            last = said.read().decode("utf-8", "replace").strip().splitlines()[-1:] or [f"code {code}"]
            raise UserError(
                "conversion_died",
                f"The process that converts has ended early ({last[0]}).",
                "Too little memory is a usual reason: close other programs and try again.",
            )
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()


def _checkpoints_in(file: Path) -> list[str] | None:
    """The checkpoints in a zip archive; None where the file is none, or is a checkpoint itself (torch's are zips)."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return None
    return [name for name in names if PurePosixPath(name).suffix in (".pth", ".pt", ".ckpt", ".bin", ".safetensors")]


@contextlib.contextmanager
def _unpacked(archive: Path, member: str, folder: Path, run: Run) -> Iterator[Path]:
    """One member of a zip archive, as a file of its own name while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as content, tempfile.TemporaryDirectory(prefix=LEFT_OVER, dir=folder) as work:
        entry = content.getinfo(member)
        check_space(folder, 2 * entry.file_size)
        path = Path(work) / PurePosixPath(member).name
        run.begin(f"Unpacking {path.name}")
        try:
            with content.open(entry) as packed, open(path, "wb") as file:
                while chunk := packed.read(CHUNK):
                    file.write(chunk)
                    run.report(file.tell(), entry.file_size)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError("weights_damaged", f"{archive} is damaged: {error}.", "Download it again.") from error
        run.begin(f"Converting {path.name}")
        yield path


def check_space(folder: Path, needed: int) -> None:
    """See that so many bytes fit on the disk of `folder`.

    Raises:
        UserError: they do not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + MARGIN:
        message = f"{needed / 1e9:.1f} GB are needed on the disk of {folder}, and {free / 1e9:.1f} GB are free."
        hint = "Free some space, or name another folder with --dir or KINESPLAT_WEIGHTS."
        raise UserError("disk_full", message, hint)


def _swap(work: Path, target: Path) -> None:
    """Put a finished folder in its place, and what was there away."""
    old = work.with_name(f"{work.name}-old")
    if target.exists():
        os.replace(target, old)
    os.replace(work, target)
    shutil.rmtree(old, ignore_errors=True)

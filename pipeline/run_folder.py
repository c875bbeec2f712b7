"""logs/<run>/, what one training leaves behind: its name, its three JSON files, how they are written and read back.

Knows paths, strict JSON and replacing a file at one stroke. What stands in the history is left to `history`, when to
write it to the recorder.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import math
import numbers
import os
import re
import secrets
import shutil
import socket
import stat
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pipeline.history import RunFolderError, TrainingLog, now

Status = Literal["completed", "interrupted", "failed"]
"""How a training ended, as training_summary.json says it."""

State = Literal["absent", "finished", "interrupted", "failed"]
"""What a run folder holds; "interrupted" is all that neither completed nor failed, a running training included."""

UNFINISHED = ".writing"
"""Ends the name of a file being written; only a kill leaves one behind, and the run's next start removes it."""

_THIS_PROCESS = secrets.token_hex(3)
"""Tells this process from an earlier one of the same number, as containers start them."""

LARGEST_JSON = 64 * 2**20
"""Bytes; ten thousand epochs take under 2 MB, so a larger file is not one of ours and is not read into memory."""

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space on that disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make the folder writable or choose another one"),
}
_RESTORE = "restore the file from a copy, or leave this run out"


def run_name(
    *,
    name: str,
    batch_size: int,
    lr: float,
    base_channels: int,
    weight_alpha: float | None,
    data_aug: bool,
    light: bool,
) -> str:
    """Compose the folder's documented name, as in ``body_unet_bs2_lr0.0001_ch32_cw0.5_aug``.

    weight_alpha None means that no class weights are used. Raises RunFolderError for a name that would leave the log
    folder, hide the run or garble a terminal.
    """
    _check_name(name)
    folder = f"{name}_bs{batch_size}_lr{lr}_ch{base_channels}"
    folder += "" if weight_alpha is None else f"_cw{weight_alpha}"
    folder += ("_aug" if data_aug else "") + ("_light" if light else "")
    _check_name(folder)
    return folder


def _check_name(name: str) -> None:
    faults = {
        "is empty": not name.strip(),
        "holds a slash": "/" in name or "\\" in name,
        'holds ".."': ".." in name,
        "starts with a dot": name.startswith("."),
        "starts or ends with a space": name != name.strip(),
        "holds a control or invisible character": not name.isprintable(),
        "is longer than the 255 bytes of a file name": len(name.encode(errors="replace")) > 255,
    }
    for fault in (fault for fault, present in faults.items() if present):
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:80])
        raise RunFolderError(f'run name "{shown}" {fault}; choose a plain one, as in --exp_name body_unet')


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace the file at path, at one stroke, by what `write` puts into the binary stream it is given.

    Whoever opens the path, at any instant and also after a kill or a power cut, finds the old file or the new one,
    whole. The new file's mode follows the umask, as any file's does (mkstemp would hide it from the group). Raises
    RunFolderError where the disk refuses; the old file is then untouched and nothing is left beside it.
    """
    path = Path(path)
    temporary = path.with_name(f"{_beginning(path)}{os.getpid()}.{_THIS_PROCESS}.{secrets.token_hex(6)}{UNFINISHED}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if refusal := disk_error(error):
            raise write_error(path, refusal) from error
        raise


def _beginning(path: Path) -> str:
    """How the temporary names of a file begin that processes of this host write: hidden, and below 255 bytes.

    A long name is cut, so its checksum tells it from others that begin alike.
    """
    name = path.name.encode(errors="replace")
    host = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:40]
    return f".{name[:120].decode(errors='ignore')}.{zlib.crc32(name):08x}.{host}."


def remove_half_written(path: Path) -> None:
    """Remove what killed processes of this host had begun to write of a file.

    Those of living ones stay, and those of other hosts, of which nothing is known here.
    """
    for half in path.parent.glob(f"{glob.escape(_beginning(path))}*{UNFINISHED}"):
        process, token = [*half.name.removeprefix(_beginning(path)).split("."), ""][:2]
        if process.isdecimal() and not _is_alive(int(process), token):
            half.unlink(missing_ok=True)


def _is_alive(process: int, token: str) -> bool:
    if process == os.getpid():
        return token == _THIS_PROCESS
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def remove_durably(path: Path) -> None:
    """Remove a file, if it is there, so that it is gone after a power cut, too. Raises RunFolderError."""
    try:
        path.unlink()
        _sync_folder(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(path, error) from error


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable, except on network file systems that cannot sync a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def disk_error(error: BaseException | None) -> OSError | None:
    """Find the OSError behind an exception: torch.save answers a full disk with an unrelated RuntimeError on top."""
    while isinstance(error, Exception) and not isinstance(error, OSError):
        # raised "from None", an error has no more to do with what went before
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error if isinstance(error, OSError) else None


def write_error(path: Path, error: OSError) -> RunFolderError:
    """Word a disk's refusal: which file or folder, why, and what to do."""
    reason, remedy = error.strerror or error, _REMEDIES.get(error.errno or 0, "see to that folder")
    return RunFolderError(f"{path}: cannot be written ({reason}); {remedy}; the old file is untouched")


def null_for_undefined(value: Any) -> Any:
    """Rebuild a value from JSON's own types: NaN and infinities become None, tuples lists, paths texts."""
    if isinstance(value, Mapping):
        return {str(key): null_for_undefined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_undefined(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document atomically as strict JSON in UTF-8; NaN and infinities become null."""
    text = json.dumps(null_for_undefined(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # a path that is not valid UTF-8 reaches us as lone surrogates: JSON can say those, as \udcXX, UTF-8 cannot
    write_atomically(path, lambda stream: stream.write(text.encode("utf-8", errors="backslashreplace")))


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; raises RunFolderError, with the file, for anything else, NaN and huge files included."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError("not a regular file")
        if path.stat().st_size > LARGEST_JSON:
            raise OSError(f"over {LARGEST_JSON >> 20} MB")
        document = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror or error}); {_RESTORE}") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path}: is not valid JSON ({error}); {_RESTORE}") from error
    if not isinstance(document, dict):
        raise RunFolderError(f"{path}: expected a JSON object, found {_kind(document)}; {_RESTORE}")
    return document


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), f"the number {value!r:.20}")


class RunFolder:
    """One run's folder, log_dir/name, which need not exist yet; its paths are relative where log_dir is.

    Raises RunFolderError for an unsafe name.
    """

    def __init__(self, log_dir: str | Path, name: str) -> None:
        _check_name(name)
        self.name = name
        self.path = Path(log_dir) / name
        self.config = self.path / "training_config.json"
        self.log = self.path / "training_log.json"
        self.summary = self.path / "training_summary.json"
        self.curves = self.path / "training_curves.png"
        self.checkpoints = self.path / "checkpoints"
        self.best_checkpoint = self.checkpoints / "best_model.ckpt"
        self.resume = self.path / "resume"
        """What resuming needs beyond the best weights; there only while the run is unfinished."""
        self.resume_checkpoint = self.resume / "last.ckpt"
        """Everything as it stood after the last finished epoch. Write resume_checkpoint, best_checkpoint and log in
        this order: after a kill in between, the other two are written from it."""

        self.lock = self.resume / "lock"
        """Held by the process that trains here; see run_lock."""

    @classmethod
    def at(cls, path: str | Path) -> RunFolder:
        """Take an existing folder for a run, "." included."""
        path = Path(path)
        path = path if path.name not in ("", "..") else path.resolve()
        return cls(path.parent, path.name)

    @property
    def state(self) -> State:
        """What the folder holds; raises RunFolderError for a damaged summary."""
        if self.summary.exists():
            states: dict[Any, State] = {"completed": "finished", "failed": "failed"}
            return states.get(self.read_summary()["status"], "interrupted")
        ours = (self.config, self.log, self.best_checkpoint, self.resume_checkpoint)
        return "interrupted" if any(path.exists() for path in ours) else "absent"

    def may_start(self, *, resume: bool = False, overwrite: bool = False) -> bool:
        """Say how a training would start here, touching nothing; True: from resume_checkpoint, False: from nothing.

        A training is never overwritten unasked: RunFolderError then says what is there and what can be done. `resume`
        of an absent run, or of one killed in its first epoch, begins: a requeued job repeats its command line.
        """
        if resume and overwrite:
            raise RunFolderError("--resume and --overwrite exclude each other; give one of them")
        state = "absent" if overwrite else self.state
        if not resume and state != "absent":
            raise RunFolderError(self._occupied(state))
        return resume and state != "absent" and self._can_continue(state)

    def make_ready(self, *, keep: bool) -> None:
        """Clear the folder for a training, as late as possible: what is removed here is gone.

        keep: go on from resume_checkpoint, so that only the ending and what a kill left half written is removed;
        otherwise all files of the run before are. TensorBoard's version_X stay, since X counts the starts.
        """
        try:
            self.summary.unlink(missing_ok=True)
            if not keep:
                for path in (self.best_checkpoint, self.log, self.config, self.curves, self.resume_checkpoint):
                    path.unlink(missing_ok=True)
            for folder in (self.checkpoints, self.resume):
                folder.mkdir(parents=True, exist_ok=True)
            self._remove_half_written()
        except OSError as error:
            raise write_error(self.path, error) from error

    def tidy(self) -> None:
        """Remove what a kill left in a completed run at the very end of its training."""
        if self.state == "finished":
            self._remove_resume()
            self._remove_half_written()

    def _occupied(self, state: State) -> str:
        kind = "an interrupted (or still running)" if state == "interrupted" else f"a {state}"
        log = self.read_log()
        best = "" if log.best_val_miou is None else f", best val mIoU {log.best_val_miou:.4f}"
        go_on = "nothing is left to --resume" if state == "finished" else "continue it with --resume"
        remedy = f"{go_on}, give the new one another --exp_name, or replace this one with --overwrite"
        return f"{self.path} holds {kind} training ({len(log)} finished epochs{best}); {remedy}"

    def _can_continue(self, state: State) -> bool:
        if state == "finished":
            raise RunFolderError(self._occupied(state))
        if not self.resume_checkpoint.exists() and len(self.read_log()):
            raise RunFolderError(
                f"{self.resume_checkpoint}: expected the state after the last epoch, found nothing; "
                "restore the file from a copy, or begin anew with --overwrite"
            )
        return self.resume_checkpoint.exists()

    def _remove_resume(self) -> None:
        if self.resume.exists():
            shutil.rmtree(self.resume)

    def _remove_half_written(self) -> None:
        for folder in (self.path, self.checkpoints, self.resume):
            for path in folder.glob(f".*{UNFINISHED}"):
                path.unlink(missing_ok=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write training_config.json from its groups."""
        write_json(self.config, config)

    def write_log(self, log: TrainingLog) -> None:
        """Write training_log.json."""
        write_json(self.log, log.to_dict())

    def write_summary(
        self, status: Status, log: TrainingLog, *, reason: str | None = None, skipped_steps: int = 0
    ) -> None:
        """Write training_summary.json; "completed" removes what resuming needed, "failed" needs a reason."""
        if status == "failed" and not reason:
            raise RunFolderError(f'{self.summary}: status "failed" needs a reason')
        summary = {
            "status": status,
            "completion_time": now(),
            "best_checkpoint": self.best_checkpoint.as_posix() if self.best_checkpoint.exists() else None,
            "best_val_mIoU": log.best_val_miou,
            "total_epochs": len(log),
        }
        summary |= {"reason": reason} if reason else {}
        summary |= {"skipped_steps": skipped_steps} if skipped_steps else {}
        write_json(self.summary, summary)
        if status == "completed":
            try:
                self._remove_resume()
                self._remove_half_written()
            except OSError as error:
                raise RunFolderError(f"{self.resume}: cannot be removed ({error}); remove it by hand") from error

    def read_config(self) -> dict[str, Any]:
        """Read training_config.json: its groups, each a dict; raises RunFolderError when it is missing or damaged."""
        config = read_json(self.config)
        for name in ("experiment", "data", "model", "training", "loss", "system"):
            if not isinstance(group := config.get(name), dict):
                raise RunFolderError(f"{self.config}: {name}: expected a group, found {_kind(group)}; {_RESTORE}")
        return config

    def read_log(self) -> TrainingLog:
        """Read training_log.json, an empty history while there is none; raises RunFolderError when it is damaged."""
        if not self.log.exists():
            return TrainingLog()
        document = read_json(self.log)
        try:
            return TrainingLog.from_dict(document)
        except RunFolderError as error:
            raise RunFolderError(f"{self.log}: {error}; {_RESTORE}") from error

    def read_summary(self) -> dict[str, Any]:
        """Read training_summary.json; raises RunFolderError when it is missing or damaged."""
        summary = read_json(self.summary)
        if (status := summary.get("status")) not in ("completed", "interrupted", "failed"):
            found = f'"{status:.40}"' if isinstance(status, str) else _kind(status)
            raise RunFolderError(f"{self.summary}: status: expected completed, interrupted or failed, found {found}")
        return summary


def list_runs(paths: Iterable[str | Path]) -> list[RunFolder]:
    """Name the runs at the given paths, each a run folder or a folder of several; each run once, in order.

    Raises RunFolderError for a path that holds none or cannot be read.
    """
    found: dict[Path, RunFolder] = {}
    for path in map(Path, paths):
        try:
            folders = [path] if _is_run(path) else sorted(filter(_is_run, path.glob("[!.]*/")))
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
        if not folders:
            what = "no training_config.json in it" if path.is_dir() else "no such folder"
            raise RunFolderError(f"{path}: expected a run folder or a folder of runs, found {what}; check the path")
        for folder in folders:
            found.setdefault(folder.resolve(), RunFolder.at(folder))
    return list(found.values())


def distinct_names(folders: Sequence[RunFolder]) -> list[str]:
    """The runs' names, or their paths where two runs of one name would be mistaken for each other."""
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder.path) for folder in folders]


def _is_run(path: Path) -> bool:
    return any((path / f"training_{part}.json").exists() for part in ("config", "log", "summary"))

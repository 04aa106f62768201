# SPDX-License-Identifier: Apache-2.0
"""Laws of atomic writing: whatever goes wrong, the old file or the new one is there, whole."""

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from otpr_policy import files
from otpr_policy.errors import OutputError

OLD = b"old content" * 100


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.bin"
    path.write_bytes(OLD)
    return path


def _assert_untouched(target: Path) -> None:
    assert target.read_bytes() == OLD
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]


def _write_half(target: Path, error: BaseException) -> None:
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise error


def test_a_new_file_appears_whole_with_its_folders_and_the_usual_mode(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "new.txt"
    files.write_text(target, "Grüße")
    assert target.read_bytes() == "Grüße".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    assert [entry.name for entry in target.parent.iterdir()] == ["new.txt"]


def test_until_the_end_of_the_block_readers_see_the_old_file(target: Path) -> None:
    with files.atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == OLD
        assert temporary.parent == target.parent  # a rename is atomic within one file system only
        assert temporary.suffix == target.suffix  # writers that choose the format by suffix must work
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_halfway_leaves_the_old_file_and_no_temporary(target: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        _write_half(target, error)
    _assert_untouched(target)


def test_a_disk_that_is_full_at_the_write_leaves_the_old_file(target: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.bin: No space left"):
        _write_half(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    _assert_untouched(target)


def test_a_disk_that_is_found_full_at_the_sync_leaves_the_old_file(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.bin: No space left"):
        files.write_bytes(target, b"new")
    _assert_untouched(target)


def test_a_real_full_device_leaves_the_old_file(target: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), files.atomic_path(target), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    _assert_untouched(target)


def test_content_is_synced_before_it_is_renamed_into_place(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        order.append("sync")
        fsync(descriptor)

    def noting_replace(source: Path, to: Path) -> None:
        order.append("rename")
        replace(source, to)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    files.write_bytes(target, b"new")
    assert order == ["sync", "rename", "sync"]  # the content, then the folder that names it


@pytest.mark.parametrize("call", ["fsync", "open"])
def test_a_folder_that_cannot_be_synced_is_no_error_for_the_new_file_is_in_place(
    call: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = getattr(os, call)

    def failing(what: int | Path, *flags: int) -> int | None:
        place = Path(os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what)
        if place == target.parent:
            asked.append("folder")
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return original(what, *flags)  # type: ignore[no-any-return]

    monkeypatch.setattr(os, call, failing)
    files.write_bytes(target, b"new")
    assert asked == ["folder"]
    assert target.read_bytes() == b"new"
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]


def test_the_mode_is_found_once_and_writing_never_touches_the_mask_of_the_whole_process(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = stat.S_IMODE(target.stat().st_mode)  # as open() made it
    before = os.umask(0o077)
    monkeypatch.setattr(os, "umask", lambda _mask: pytest.fail("another thread would now create files that anyone can write"))
    try:
        files.write_bytes(target, b"new")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == usual


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    for impossible in (blocker / "below.txt", tmp_path / ("x" * 300), tmp_path):
        with pytest.raises(OutputError, match="cannot write"):
            files.write_bytes(impossible, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.timeout(60)
def test_killed_at_any_moment_the_file_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "state.bin"
    # Content that proves its own completeness: a counter repeated, then its digest.
    code = """
import hashlib, sys
from pathlib import Path
from otpr_policy import files
count = 0
while True:
    body = count.to_bytes(8, "big") * 20_000
    files.write_bytes(Path(sys.argv[1]), body + hashlib.sha256(body).digest())
    if count == 0:
        print("running", flush=True)
    count += 1
"""
    counts = set()
    for attempt in range(20):
        with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"running\n"
            try:
                writer.wait(0.003 + 0.0007 * attempt)
            except subprocess.TimeoutExpired:
                writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        content = target.read_bytes()
        body, digest = content[:-32], content[-32:]
        assert len(body) == 160_000
        assert hashlib.sha256(body).digest() == digest
        counts.add(int.from_bytes(body[:8], "big"))
    assert len(counts) > 1  # or nothing was ever replaced and the test proves nothing


def test_an_output_that_exists_is_refused_unless_overwriting_is_asked_for(target: Path, tmp_path: Path) -> None:
    for taken in (target, tmp_path):
        with pytest.raises(OutputError, match="--overwrite"):
            files.refuse_existing(taken, overwrite=False)
        files.refuse_existing(taken, overwrite=True)
    files.refuse_existing(tmp_path / "free", overwrite=False)


def test_the_digest_of_a_file_is_sha256_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # the test vector of FIPS 180-4
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

"""Archives are untrusted: nothing leaves its folder, nothing half-done stays, bytes are the published."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import http.server
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segtrain.data import download
from segtrain.data.download import extract, fetch
from segtrain.errors import DataError, ResourceError


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tar(path: Path, *members: tuple[str, bytes | dict[str, Any]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, dict):
                info.type, info.linkname = content["type"], content.get("linkname", "")
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# --- fetch ----------------------------------------------------------------------------------------


def test_a_file_arrives_whole_under_its_name(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)) * 9000)
    path = fetch(source.as_uri(), md5(source), tmp_path / "new" / "folder", filename="a.tar")
    assert path == tmp_path / "new/folder/a.tar"
    assert path.read_bytes() == source.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["a.tar"]


def test_a_file_that_is_there_is_verified_and_not_fetched(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"put here by hand")
    assert fetch("http://nowhere.invalid/a.tar", md5(path), tmp_path, filename="a.tar") == path
    with pytest.raises(DataError, match="checksum does not match") as caught:
        fetch("http://nowhere.invalid/a.tar", "0" * 32, tmp_path, filename="a.tar")
    assert caught.value.fix == f"remove {path} and run again"
    assert path.read_bytes() == b"put here by hand", "somebody's file is not overwritten"


def test_wrong_bytes_are_removed_and_named(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"an error page")
    with pytest.raises(DataError, match="checksum does not match") as caught:
        fetch(source.as_uri(), "0" * 32, tmp_path / "to", filename="a.tar")
    assert source.as_uri() in str(caught.value)
    assert f"md5 {'0' * 32}" in str(caught.value)
    assert list((tmp_path / "to").iterdir()) == []


@contextlib.contextmanager
def server(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler]) -> Iterator[str]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


class Broken(http.server.SimpleHTTPRequestHandler):
    """Announces more than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Missing(Broken):
    """Has no such file."""

    def do_GET(self) -> None:
        self.send_error(404)


def test_a_connection_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    with server(tmp_path, Broken) as url, pytest.raises(DataError):
        fetch(f"{url}/a.tar", "0" * 32, tmp_path / "to", filename="a.tar")
    assert list((tmp_path / "to").iterdir()) == []


def test_no_network_is_told_with_the_url_and_the_place_for_a_download_by_hand(tmp_path: Path) -> None:
    with server(tmp_path, Missing) as url, pytest.raises(DataError, match="HTTP Error 404") as caught:
        fetch(f"{url}/a.tar", "f" * 32, tmp_path / "to", filename="a.tar")
    gone = f"{url}/a.tar"
    assert caught.value.where == gone
    assert f"by hand to {tmp_path}/to/a.tar (md5 {'f' * 32})" in str(caught.value.fix)
    with pytest.raises(DataError, match="download failed"):  # nobody listens there any more
        fetch(gone, "f" * 32, tmp_path / "to", filename="a.tar")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_full_disk_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"content")

    def full(read: Any, write: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_copy", full)
    with pytest.raises(ResourceError, match="disk is full") as caught:
        fetch(source.as_uri(), md5(source), tmp_path / "to", filename="a.tar")
    assert caught.value.code == 6
    assert list((tmp_path / "to").iterdir()) == []


# --- extract --------------------------------------------------------------------------------------

GOOD = (("top/a.txt", b"first"), ("top/deep/b.bin", bytes(1000)))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_unpacks_beside_what_is_there(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "to"
    (folder / "top").mkdir(parents=True)
    (folder / "top/mine.txt").write_bytes(b"mine")
    (folder / "top/a.txt").write_bytes(b"half of an earlier try")
    extract(tar(tmp_path / "a.tar", *GOOD, mode=mode), folder)
    assert tree(folder) == {"top/mine.txt": b"mine", **dict(GOOD)}


def test_a_zip_unpacks(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        for name, content in GOOD:
            bundle.writestr(name, content)
    extract(tmp_path / "a.zip", tmp_path / "to")
    assert tree(tmp_path / "to") == dict(GOOD)


ESCAPES = ["../evil.txt", "top/../../evil.txt", "/tmp/segtrain-evil.txt", "..\\evil.txt", "C:\\evil.txt"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_path_out_of_the_folder_is_refused_before_anything_is_written(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar(archive, *GOOD, (name, b"evil"))
    else:
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr("top/a.txt", b"first")
            bundle.writestr(name, b"evil")
    with pytest.raises(DataError, match="would be written outside the folder") as caught:
        extract(archive, tmp_path / "to" / "here")
    assert caught.value.where == str(archive)
    assert set(tree(tmp_path)) == {archive.name}
    assert not Path("/tmp/segtrain-evil.txt").exists()


@pytest.mark.parametrize(
    "member",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc"},
        {"type": tarfile.SYMTYPE, "linkname": "a.txt"},
        {"type": tarfile.LNKTYPE, "linkname": "top/a.txt"},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CHRTYPE},
        {"type": tarfile.BLKTYPE},
    ],
)
def test_links_and_devices_are_refused(tmp_path: Path, member: dict[str, Any]) -> None:
    archive = tar(tmp_path / "a.tar", *GOOD, ("top/odd", member))
    with pytest.raises(DataError, match="'top/odd' is a link or a device"):
        extract(archive, tmp_path / "to")
    assert set(tree(tmp_path)) == {"a.tar"}


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("top/odd")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
        bundle.writestr(link, "/etc")
    with pytest.raises(DataError, match="link or a device"):
        extract(tmp_path / "a.zip", tmp_path / "to")


def test_archives_that_unpack_to_too_much_are_refused(tmp_path: Path) -> None:
    many = tar(tmp_path / "many.tar", *[(f"{i}", b"") for i in range(11)])
    with pytest.raises(DataError, match="more than 10 members"):
        extract(many, tmp_path / "to", max_files=10)
    bomb = tar(tmp_path / "bomb.tar.gz", ("zeros", bytes(1_000_000)), mode="w:gz")
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DataError, match="more than 100,000 bytes"):
        extract(bomb, tmp_path / "to", max_bytes=100_000)
    assert tree(tmp_path / "to") == {}


@pytest.mark.parametrize("mode", ["w", "w:gz", "zip"])
def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path: Path, mode: str) -> None:
    archive = tmp_path / "a"
    noise = bytes(i * i % 251 for i in range(60_000))
    if mode == "zip":
        with zipfile.ZipFile(archive, "w") as bundle:
            bundle.writestr("x", noise)
        whole = bytearray(archive.read_bytes())
        whole[5000] ^= 0xFF
        archive.write_bytes(whole)
    else:
        tar(archive, ("x", noise), mode=mode)
        archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match="archive is damaged") as caught:
        extract(archive, tmp_path / "to")
    assert caught.value.where == str(archive)
    assert list((tmp_path / "to").rglob("*")) == []

from __future__ import annotations

import errno
import hashlib
import random

import pytest
from range_server import RangeServer, answer

from detkt.base.errors import InputError
from detkt.prepare import download as module
from detkt.prepare.download import download

CONTENT = random.Random(0).randbytes(300_000)
DIGESTS = {"md5": hashlib.md5(CONTENT).hexdigest(), "sha256": hashlib.sha256(CONTENT).hexdigest()}
HALF = 150_000


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.0)
    server = RangeServer()
    server.files["/file.tar"] = CONTENT
    yield server
    server.close()


@pytest.fixture
def get(server, tmp_path):
    """``get("/a", "/b")``: the path to which one of these addresses of the server was downloaded."""

    def call(*names):
        path = tmp_path / "file.tar"
        download([server.url + name for name in names or ["/file.tar"]], path, len(CONTENT), DIGESTS, quiet=True)
        return path

    return call


def refusal(get, *names):
    with pytest.raises(InputError) as caught:
        get(*names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def cut(server, most):
    return lambda handler: server.serve(handler, most)


def test_whole_file_and_nothing_else(server, get, tmp_path):
    assert get().read_bytes() == CONTENT
    assert left(tmp_path) == ["file.tar"]
    assert server.requests == [("/file.tar", None, None)]


def test_file_that_is_there_is_verified_and_not_asked_for(server, get, tmp_path):
    (tmp_path / "file.tar").write_bytes(CONTENT)
    get()
    assert server.requests == []


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_file_that_is_there_but_wrong_is_replaced(server, get, tmp_path, content):
    (tmp_path / "file.tar").write_bytes(content)
    assert get().read_bytes() == CONTENT


def test_cut_connection_goes_on_where_it_was(server, get):
    server.plan = [cut(server, HALF), cut(server, 100_000)]
    assert get().read_bytes() == CONTENT
    assert server.requests == [
        ("/file.tar", None, None),
        ("/file.tar", "bytes=150000-", '"1"'),
        ("/file.tar", "bytes=250000-", '"1"'),
    ]


def test_next_call_goes_on(server, get, tmp_path):
    server.plan = [cut(server, HALF)] + [lambda handler: answer(handler, 503, b"")] * module.ATTEMPTS
    assert "503" in refusal(get)
    assert left(tmp_path) == ["file.tar.part", "file.tar.part.origin"]
    assert (tmp_path / "file.tar.part").read_bytes() == CONTENT[:HALF]
    server.requests.clear()
    assert get().read_bytes() == CONTENT
    assert server.requests == [("/file.tar", "bytes=150000-", '"1"')]
    assert left(tmp_path) == ["file.tar"]


def test_ctrl_c_keeps_what_has_arrived(server, get, tmp_path, monkeypatch):
    read = module._read
    arrived = []

    def interrupted(response):
        if len(arrived) == 2:
            raise KeyboardInterrupt
        arrived.append(read(response))
        return arrived[-1]

    monkeypatch.setattr(module, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get()
    assert (tmp_path / "file.tar.part").read_bytes() == CONTENT[: 2 * 65536]
    monkeypatch.setattr(module, "_read", read)
    assert get().read_bytes() == CONTENT
    assert server.requests[-1] == ("/file.tar", "bytes=131072-", '"1"')


def test_version_that_changed_in_between_is_not_mixed(server, get, tmp_path):
    server.files["/file.tar"], server.tags["/file.tar"] = bytes(len(CONTENT)), '"old"'
    server.plan = [cut(server, HALF)] + [lambda handler: answer(handler, 503, b"")] * module.ATTEMPTS
    refusal(get)
    server.files["/file.tar"], server.tags["/file.tar"] = CONTENT, '"new"'
    server.requests.clear()
    assert get().read_bytes() == CONTENT
    assert server.requests == [("/file.tar", "bytes=150000-", '"old"')]  # answered with all of the new one


def test_beginning_from_elsewhere_is_thrown_away(server, get, tmp_path):
    # No version is known of it, so all that can tell is the checksum.
    (tmp_path / "file.tar.part").write_bytes(bytes(HALF))
    assert get().read_bytes() == CONTENT
    assert [request[1:] for request in server.requests] == [("bytes=150000-", None), (None, None)]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_part_that_is_too_long_or_wrong_as_a_whole(get, tmp_path, length):
    (tmp_path / "file.tar.part").write_bytes(bytes(length))
    assert get().read_bytes() == CONTENT


def test_whole_part_needs_no_request(server, get, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT)
    assert get().read_bytes() == CONTENT
    assert server.requests == []


def test_range_not_satisfiable_starts_anew(server, get, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT[:HALF])
    server.plan = [lambda handler: answer(handler, 416, b"")]
    assert get().read_bytes() == CONTENT
    assert [request[1] for request in server.requests] == ["bytes=150000-", None]


@pytest.mark.parametrize("given", ["bytes 7-299999/300000", "", "nonsense"])
def test_other_range_than_asked_for_starts_anew(server, get, tmp_path, given):
    (tmp_path / "file.tar.part").write_bytes(CONTENT[:HALF])
    server.plan = [lambda handler: answer(handler, 206, CONTENT[7:], {"Content-Range": given})]
    assert get().read_bytes() == CONTENT
    assert [request[1] for request in server.requests] == ["bytes=150000-", None]


def test_server_without_ranges_that_always_cuts_is_given_up(server, get):
    server.plan = [lambda handler: answer(handler, 200, CONTENT[:HALF], {"Content-Length": len(CONTENT)})] * 20
    assert f"the connection was cut after 150000 of 300000 bytes ({module.ATTEMPTS} attempts)" in refusal(get)
    assert len(server.requests) == module.ATTEMPTS + 1  # the first one brought something


def test_slow_progress_is_not_given_up(server, get):
    server.plan = [cut(server, 20_000) for _ in range(14)]
    assert get().read_bytes() == CONTENT
    assert len(server.requests) == 15


def test_waits_longer_after_each_failure(server, get, monkeypatch):
    waits = []
    monkeypatch.setattr(module, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.plan = [lambda handler: answer(handler, 500, b"")] * 3
    assert get().read_bytes() == CONTENT
    assert waits == [1, 2, 4]


def test_wrong_checksum_is_refused_and_removed(server, get, tmp_path):
    server.files["/file.tar"] = CONTENT[:-1] + b"x"
    message = refusal(get)
    assert f"wrong checksum: its MD5 is {hashlib.md5(CONTENT[:-1] + b'x').hexdigest()} instead of" in message
    assert left(tmp_path) == []


def test_every_checksum_counts(server, tmp_path):
    wrong = DIGESTS | {"sha256": "0" * 64}
    with pytest.raises(InputError, match="its SHA256 is"):
        download([f"{server.url}/file.tar"], tmp_path / "file.tar", len(CONTENT), wrong, quiet=True)
    assert left(tmp_path) == []


def test_next_address_where_one_fails(server, get):
    server.files["/wrong"] = bytes(len(CONTENT))
    server.files["/short"] = CONTENT[:100]
    assert get("/none", "/short", "/wrong", "/file.tar").read_bytes() == CONTENT


def test_all_reasons_are_told(server, get, tmp_path):
    server.files["/short"] = CONTENT[:100]
    message = refusal(get, "/none", "/short")
    assert f"{server.url}/none: 404 Not Found; {server.url}/short: it offers 100 bytes, and not the 300000" in message
    assert "--url" in message
    assert len(server.requests) == 2  # neither will be otherwise a moment later


def test_wrong_content_length(server, get, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT[:HALF])
    server.plan = [lambda handler: answer(handler, 200, CONTENT, {"Content-Length": len(CONTENT) - 1})]
    assert "it offers 299999 bytes" in refusal(get)
    assert (tmp_path / "file.tar.part").read_bytes() == CONTENT[:HALF]


def test_file_that_has_another_length_now(server, get, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT[:HALF])
    server.files["/file.tar"] = CONTENT + b"more"
    assert "it offers 300004 bytes" in refusal(get)


def test_more_than_announced(server, get, tmp_path):
    server.plan = [lambda handler: answer(handler, 200, CONTENT + bytes(10**6), {})]
    assert "sends more than the 300000 bytes" in refusal(get)
    assert (tmp_path / "file.tar.part").stat().st_size <= len(CONTENT)


def test_web_page_does_not_cost_what_has_arrived(server, get, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT[:HALF])
    server.plan = [lambda handler: answer(handler, 200, b"<html>log in", {"Content-Type": "text/html"})]
    assert "it offers a web page" in refusal(get)
    assert (tmp_path / "file.tar.part").read_bytes() == CONTENT[:HALF]


def test_no_length_at_all(server, get):
    server.plan = [lambda handler: answer(handler, 200, CONTENT, {})]
    assert get().read_bytes() == CONTENT


def test_silent_server_is_left(server, get, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.2)
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.plan = [lambda handler: module.time.sleep(1)]
    assert "timed out" in refusal(get)


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.0)
    server = RangeServer()
    server.close()
    with pytest.raises(InputError, match="Connection refused"):
        download([f"{server.url}/file.tar"], tmp_path / "file.tar", 5, {"md5": ""}, quiet=True)


@pytest.mark.parametrize("url", ["nonsense", "http://a b/", "gopher://a/"])
def test_no_address(tmp_path, monkeypatch, url):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.0)
    with pytest.raises(InputError, match="cannot download file.tar"):
        download([url], tmp_path / "file.tar", 5, {"md5": ""}, quiet=True)


def test_full_disk_keeps_what_has_arrived(server, get, tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, chunk):
            if self.file.tell() + len(chunk) > HALF:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(chunk)

    def opened(*arguments):
        file = open(*arguments)  # noqa: SIM115
        return FullDisk(file) if "b" in arguments[1] else file

    monkeypatch.setattr(module, "open", opened, raising=False)
    message = refusal(get)
    assert "No space left on device; free space" in message
    assert len(server.requests) == 1  # a full disk is no reason to ask again
    assert (tmp_path / "file.tar.part").read_bytes() == CONTENT[: 2 * 65536]


def test_folder_that_is_not_there(server):
    with pytest.raises(InputError, match="cannot write /nowhere/file.tar: No such file or directory"):
        download([f"{server.url}/file.tar"], module.Path("/nowhere/file.tar"), len(CONTENT), DIGESTS, quiet=True)

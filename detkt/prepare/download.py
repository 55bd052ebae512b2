"""Downloads that go on where they were cut off, and are believed only by their checksum."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from detkt.base.errors import InputError
from detkt.base.version import __version__

ATTEMPTS = 5  # in a row without a byte more than ever before
FIRST_WAIT = 1.0  # seconds, doubled after each further failure
TIMEOUT = 30.0  # seconds without an answer or a byte
_CHUNK = 1 << 16
# RFC 9110, section 15, and RFC 6585: what may be otherwise a moment later.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Refused(Exception):
    """This address will not give the file, however often it is asked."""


class _Failed(Exception):
    """The transfer failed, and may succeed if tried again."""


class _NoSuchRange(_Failed):
    """What has arrived is no beginning of what the server has."""


def download(urls: Sequence[str], path: Path, size: int, digests: Mapping[str, str], quiet: bool = False) -> None:
    """Bring the file at one of *urls*, tried in order, to *path*; a file there that is right already is kept.

    What has arrived is in ``PATH.part`` until it is whole and right, whatever stops the transfer: the next call goes on
    from there (RFC 9110: Range, and If-Range with what the server said identifies its version). Only a file of *size*
    bytes and of all *digests* (algorithm of `hashlib` -> hexadecimal) is renamed to *path*.

    Raises InputError: no address gave the file (the line says why, of each), or it cannot be written.
    """
    try:
        if path.is_file() and _mismatch(path, size, digests) is None:
            return
        reasons = []
        for url in urls:
            reason = _bring(url, path, size, digests, quiet)
            if reason is None:
                return
            reasons.append(f"{url}: {reason}")
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder, then run this "
            "again: what has arrived is kept"
        ) from error
    raise InputError(
        f"cannot download {path.name}: {'; '.join(reasons)}; try again later, give a mirror with --url, or put the "
        f"file at {path} yourself"
    )


def _bring(url: str, path: Path, size: int, digests: Mapping[str, str], quiet: bool) -> str | None:
    """None, and *path* is there; or why *url* did not give it."""
    part = _Part(path)
    while True:
        resumed = part.length > 0
        try:
            _fetch(url, part, size, quiet)
        except _Refused as refusal:
            return str(refusal)
        reason = _mismatch(part.path, size, digests)
        if reason is None:
            part.finish(path)
            return None
        part.remove()
        # The beginning may have been of another version, or of another server's file.
        if not resumed:
            return reason


class _Part:
    """The file in the making, and beside it the address and version of what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self._origin = path.with_name(f"{path.name}.part.origin")

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def version(self, url: str) -> str:
        """The validator that *url* gave with the bytes that are there; "" if none, or if they are not from there."""
        try:
            origin, _, version = self._origin.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return ""
        return version if origin == url else ""

    def begin(self, url: str, version: str) -> None:
        self._origin.write_text(f"{url}\n{version}", encoding="utf-8")

    def remove(self) -> None:
        for path in (self.path, self._origin):
            path.unlink(missing_ok=True)

    def finish(self, path: Path) -> None:
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, path)
        self._origin.unlink(missing_ok=True)


def _fetch(url: str, part: _Part, size: int, quiet: bool) -> None:
    """Ask until *part* has *size* bytes."""
    if part.length > size:
        part.remove()
    failures, most = 0, part.length
    name = part.path.name.removesuffix(".part")
    with tqdm(total=size, desc=name, unit="B", unit_scale=True, unit_divisor=1024, disable=quiet) as bar:
        while part.length < size:
            try:
                _request(url, part, size, bar)
                reason = f"the connection was cut after {part.length} of {size} bytes"
            except _NoSuchRange as error:
                part.remove()
                reason = str(error)
            except _Failed as error:
                reason = str(error)
            # Counting from the most that ever was there: a server that cannot resume, and always cuts at the same
            # place, is not asked for ever.
            failures = 0 if part.length > most else failures + 1
            most = max(most, part.length)
            if failures >= ATTEMPTS:
                raise _Refused(f"{reason} ({ATTEMPTS} attempts)")
            if failures:
                time.sleep(FIRST_WAIT * 2 ** (failures - 1))


def _request(url: str, part: _Part, size: int, bar: tqdm) -> None:
    """One answer of the server, written to *part* as far as it comes."""
    headers = {"User-Agent": f"detkt/{__version__}"}
    have = part.length
    if have:
        headers["Range"] = f"bytes={have}-"
        if version := part.version(url):
            headers["If-Range"] = version
    with _network():
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    with response:
        start = _start(response, have, size)
        if start == 0:
            part.begin(url, _validator(response))
        with open(part.path, "rb+" if start else "wb") as file:
            file.seek(start)
            bar.n = start
            bar.refresh()
            while chunk := _read(response):
                if file.tell() + len(chunk) > size:
                    raise _Refused(f"sends more than the {size} bytes that the file has")
                file.write(chunk)
                bar.update(len(chunk))


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Tells errors of the network from those of the disk, which are `OSError` as well."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"{error.code} {error.reason}"
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _NoSuchRange(reason) from None
        raise (_Failed if error.code in _PASSING else _Refused)(reason) from None
    except ValueError as error:  # no address at all
        raise _Refused(str(error)) from None
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        kind = _Refused if isinstance(cause, ssl.SSLCertVerificationError) else _Failed
        raise kind(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__) from None


def _read(response: http.client.HTTPResponse) -> bytes:
    with _network():
        return response.read(_CHUNK)


def _start(response: http.client.HTTPResponse, have: int, size: int) -> int:
    """The offset of the answer's first byte; refuses an answer that cannot be (the rest of) the file."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != have:
            raise _NoSuchRange("it answers with other bytes than asked for")
        start, total = have, found[2]
    else:
        start, total = 0, response.headers.get("Content-Length", "")
    page = start == 0 and response.headers.get_content_type() == "text/html"
    if page or (total.isdigit() and int(total) != size):
        # What has arrived stays: this may be the page of a network that wants a login first.
        offer = "a web page" if page else f"{total} bytes"
        raise _Refused(f"it offers {offer}, and not the {size} bytes of the file")
    return start


def _validator(response: http.client.HTTPResponse) -> str:
    """What If-Range may hold (RFC 9110, section 13.1.5): a strong entity tag, or the date of the last change."""
    tag = response.headers.get("ETag", "").strip()
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "").strip()


def _mismatch(path: Path, size: int, digests: Mapping[str, str]) -> str | None:
    """What tells the file from the one that is wanted; None: nothing."""
    found = path.stat().st_size
    if found != size:
        return f"it has {found} bytes instead of {size}"
    sums = {algorithm: hashlib.new(algorithm, usedforsecurity=False) for algorithm in digests}
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            for each in sums.values():
                each.update(chunk)
    for algorithm, each in sums.items():
        if each.hexdigest() != digests[algorithm]:
            return f"wrong checksum: its {algorithm.upper()} is {each.hexdigest()} instead of {digests[algorithm]}"
    return None

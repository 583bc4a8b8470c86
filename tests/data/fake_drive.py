"""A local server that behaves like Google Drive where it matters: warning page, quota page, ranges, cut connections."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from requests.adapters import HTTPAdapter

# On one line, as Google writes it: gdown looks for the form in each line by itself.
_WARNING = (
    '<html><body><form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="1-2-3"></form></body></html>'
)
_QUOTA = """<html><body><p class="uc-error-caption">Sorry</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""


class FakeDrive:
    """Serves one file.

    Attributes:
        content: the file's bytes.
        quota_spent: refuse, as Drive does for hours.
        cut_after: close the connection after so many bytes of the file, each time it is requested.
        paths: what was requested, with the Range header where there was one.
        etag, last_modified: headers of the file, None for neither; a range is served only if one of them is If-Range.
        page_instead: serve a web page in place of the file.
        shift: serve ranges that begin so many bytes later than requested.
        ignores_if_range: serve the range whatever If-Range says.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.quota_spent = False
        self.cut_after: int | None = None
        self.paths: list[tuple[str, str | None]] = []
        self.etag: str | None = '"one"'
        self.last_modified: str | None = None
        self.page_instead = False
        self.shift = 0
        self.ignores_if_range = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer for Google's hosts: everything of gdown and requests runs, only the addressee of the bytes differs."""
        real_send = HTTPAdapter.send

        def send(adapter, request, **options):
            request.url = re.sub(r"https://(drive|drive\.usercontent)\.google\.com", self.url, request.url)
            return real_send(adapter, request, **options)

        monkeypatch.setattr(HTTPAdapter, "send", send)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        drive = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                drive.paths.append((self.path, self.headers.get("Range")))
                if self.path.startswith("/uc?"):
                    page = _QUOTA if drive.quota_spent else _WARNING.format(id=self.path.partition("id=")[2])
                    self._page(200, page)
                elif self.path.startswith("/download?") and "confirm=t" not in self.path:
                    self._page(403, "no")
                elif self.path.startswith(("/download?", "/set.zip")):
                    if drive.page_instead:
                        self._page(200, "<html>Please wait.</html>")
                    else:
                        self._file()
                elif self.path == "/page":
                    self._page(200, "<html>not a zip</html>")
                else:
                    self._page(404, "no such file")

            def _page(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def _file(self) -> None:
                total = len(drive.content)
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                condition = self.headers.get("If-Range")
                if condition and condition not in (drive.etag, drive.last_modified) and not drive.ignores_if_range:
                    wanted = None
                start = int(wanted[1]) + drive.shift if wanted else 0
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("Content-Disposition", 'attachment; filename="set.zip"')
                for name, value in (("ETag", drive.etag), ("Last-Modified", drive.last_modified)):
                    if value is not None:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(total - start))
                self.end_headers()
                end = total if drive.cut_after is None else min(total, start + drive.cut_after)
                self.wfile.write(drive.content[start:end])
                if end < total:
                    self.wfile.flush()
                    self.connection.close()

            def log_message(self, *args: object) -> None:
                pass

        return Handler

"""download.py: a file comes whole or not at all, and each failure is one line that says what to do.

Left out on purpose: the real network.
"""
import hashlib
import http.server
import socket
import threading

import pytest

from conftest import one_line
from download import download

WHOLE = bytes(range(256)) * 2000  # half a megabyte
SHA256 = hashlib.sha256(WHOLE).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    asked = []

    def do_GET(self, body=True):
        self.asked.append((self.command, self.path))
        if self.path == "/missing":
            return self.send_error(404)
        if self.path == "/broken":
            return self.send_error(503)
        if self.path == "/rude":  # hangs up without a word
            return self.connection.shutdown(socket.SHUT_RDWR)
        if self.path == "/noise":
            return self.wfile.write(b"\x00\x01 this is not HTTP\r\n\r\n")
        self.send_response(200)
        if self.path != "/no-length":
            self.send_header("Content-Length", str(len(WHOLE)))
        self.end_headers()
        if body:
            spoilt = {"/cut": WHOLE[:len(WHOLE) // 2], "/nothing": b"",
                      "/altered": WHOLE[:-1] + b"!"}
            self.wfile.write(spoilt.get(self.path, WHOLE))

    def do_HEAD(self):
        self.do_GET(body=False)

    def log_message(self, *args):
        pass


@pytest.fixture
def url(monkeypatch):
    """The address of a server that runs while the test does."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(Server, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01},
                              daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("sha256", [None, SHA256])
@pytest.mark.parametrize("name", ["/whole", "/no-length"])
def test_whole(url, tmp_path, name, sha256):
    """Guards the good case, in a folder that does not exist yet; a second call asks nobody."""
    path = tmp_path / "new" / "folder" / "file.bin"
    assert download(url + name, path, sha256) == path
    assert path.read_bytes() == WHOLE and [p.name for p in path.parent.iterdir()] == ["file.bin"]
    asked = len(Server.asked)
    assert asked > 0 and download(url + name, path, sha256) == path and len(Server.asked) == asked


def test_there_already(tmp_path):
    """Guards a file that was put there by hand, with no network at all: it is taken, and not
    touched."""
    path = tmp_path / "file.bin"
    path.write_bytes(b"mine")
    assert download("http://nowhere.invalid/file.bin", path, SHA256) == path
    assert path.read_bytes() == b"mine"


def fails(address, tmp_path, sha256=None):
    path = tmp_path / "sub" / "file.bin"
    with pytest.raises(ValueError) as e:
        download(address, path, sha256)
    # no file, and no part of one under another name
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    text = one_line(e)
    assert address in text and str(path) in text  # where it came from, and where to put it by hand
    return text


@pytest.mark.parametrize("name", ["/cut", "/nothing"])
def test_cut_off(url, tmp_path, name):
    """Guards against half a file under the right name: a connection that is cut ends a read
    without an error."""
    assert "cut" in fails(url + name, tmp_path)


def test_cut_off_with_hash(url, tmp_path):
    """Guards the same where a hash is known."""
    fails(url + "/cut", tmp_path, SHA256)


def test_wrong_hash(url, tmp_path):
    """Guards against another file under the right name, one byte off."""
    assert "sha256" in fails(url + "/altered", tmp_path, SHA256)
    assert "sha256" in fails(url + "/whole", tmp_path, "0" * 64)


@pytest.mark.parametrize("name, code", [("/missing", "404"), ("/broken", "503")])
def test_server_says_no(url, tmp_path, name, code):
    """Guards a wrong address: the number of the error is said."""
    assert code in fails(url + name, tmp_path)


@pytest.mark.parametrize("name", ["/rude", "/noise"])
def test_rude_server(url, tmp_path, name):
    """Guards against a server that hangs up, or speaks no HTTP (a hotel's login page)."""
    fails(url + name, tmp_path)


def test_no_server(tmp_path, monkeypatch):
    """Guards a machine without a network: nobody listens, or the name has no address."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    assert "no connection" in fails(f"http://127.0.0.1:{port}/file.bin", tmp_path)
    assert "no connection" in fails("http://nowhere.invalid/file.bin", tmp_path)


def test_folder_in_the_way(url, tmp_path):
    """Guards a place that can't be written: a sentence about the place, not about the network."""
    (tmp_path / "sub").write_text("a file, where a folder should be")
    with pytest.raises(ValueError) as e:
        download(url + "/whole", tmp_path / "sub" / "file.bin")
    assert "can't be written" in one_line(e) and (tmp_path / "sub").read_text().startswith("a file")

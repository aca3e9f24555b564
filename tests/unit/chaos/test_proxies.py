"""The proxy lets troubles befall requests, and passes all else on as it came."""

import http.client
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests

from tests.integration.api_proxy import ApiProxy, S3Proxy, on_loopback
from tests.integration.faults import Harm, Trouble

CONTENT = b"weights" * 50_000


class Store(BaseHTTPRequestHandler):
    """Keeps one object, as S3 does."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, int]] = []  # noqa: RUF012 - of the class, emptied by the fixture

    def _note(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append((self.command, self.headers["Host"], len(body)))
        self.send_response(200)
        self.send_header("Content-Length", str(0 if self.command == "PUT" else len(CONTENT)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(CONTENT)

    do_GET = do_PUT = do_HEAD = _note  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def store() -> Iterator[str]:
    Store.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(store: str) -> Iterator[S3Proxy]:
    proxy = S3Proxy(store)
    yield proxy
    proxy.close()


def test_requests_and_answers_pass_unchanged_and_the_host_stays_as_it_was_signed(proxy: S3Proxy) -> None:
    assert requests.get(proxy.address).content == CONTENT
    assert requests.head(proxy.address).headers["Content-Length"] == str(len(CONTENT))
    assert requests.put(proxy.address, data=CONTENT).status_code == 200

    host = proxy.address.removeprefix("http://")
    assert Store.seen == [("GET", host, 0), ("HEAD", host, 0), ("PUT", host, len(CONTENT))]


@pytest.mark.parametrize(("code", "word"), [(503, "SlowDown"), (429, "TooManyRequests"), (403, "InvalidAccessKeyId")])
def test_a_refusal_reads_as_one_of_s3_and_never_arrives(proxy: S3Proxy, code: int, word: str) -> None:
    proxy.troubles = [Trouble(Harm.REFUSED, code=code)]

    answer = requests.put(proxy.address, data=CONTENT)

    assert (answer.status_code, word in answer.text, Store.seen) == (code, True, [])
    assert proxy.troubled[Harm.REFUSED] == 1
    proxy.mend()
    assert requests.get(proxy.address).content == CONTENT


@pytest.mark.parametrize("harm", [Harm.CUT, Harm.CUT_WITHIN_REQUEST])
def test_a_connection_that_is_cut_before_its_answer_gives_none(proxy: S3Proxy, harm: Harm) -> None:
    proxy.troubles = [Trouble(harm)]

    with pytest.raises(requests.ConnectionError):
        requests.put(proxy.address, data=CONTENT)
    assert Store.seen == []


def test_an_answer_that_is_cut_is_shorter_than_it_says(proxy: S3Proxy) -> None:
    proxy.troubles = [Trouble(Harm.CUT_WITHIN_ANSWER)]

    with pytest.raises(
        (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, http.client.IncompleteRead)
    ):
        requests.get(proxy.address)


def test_a_slow_answer_comes(proxy: S3Proxy) -> None:
    proxy.troubles = [Trouble(Harm.SLOW, seconds=0.3)]
    began = time.monotonic()

    assert requests.get(proxy.address).content == CONTENT
    assert time.monotonic() - began >= 0.3


def test_a_share_of_the_requests_that_match_is_troubled(proxy: S3Proxy) -> None:
    proxy.troubles = [Trouble(Harm.REFUSED, share=0.5, matches=lambda asked: "/rows" in asked.path)]

    codes = [requests.head(f"{proxy.address}/rows").status_code for _ in range(40)]

    assert 8 <= codes.count(503) <= 32
    assert {requests.head(f"{proxy.address}/model").status_code for _ in range(10)} == {200}


def test_requests_of_one_key_are_refused(proxy: S3Proxy) -> None:
    proxy.troubles = [Trouble(Harm.REFUSED, code=403, matches=lambda asked: "=OLD/" in asked.authorization)]

    codes = [
        requests.head(proxy.address, headers={"Authorization": f"AWS4-HMAC-SHA256 Credential={key}/2026"}).status_code
        for key in ("OLD", "NEW")
    ]

    assert codes == [403, 200]


def test_of_several_troubles_each_has_its_share(proxy: S3Proxy) -> None:
    proxy.troubles = [Trouble(Harm.REFUSED, share=0.3, code=503), Trouble(Harm.REFUSED, share=0.3, code=429)]

    codes = {requests.head(proxy.address).status_code for _ in range(60)}

    assert codes == {200, 503, 429}


def test_a_server_that_is_away_refuses_connections_and_comes_back_at_its_address(proxy: S3Proxy) -> None:
    proxy.refuse_connections()
    with pytest.raises(requests.ConnectionError):
        requests.get(proxy.address)

    proxy.mend()

    assert requests.get(proxy.address).content == CONTENT


def test_pods_speak_https_to_the_proxy(store: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    subject = ["-subj", "/CN=proxy", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, *files], check=True)
    proxy = ApiProxy(store, None, on_loopback, 0, (certificate, key))
    try:
        assert proxy.address.startswith("https://127.0.0.1:")
        assert requests.get(proxy.address, verify=str(certificate)).content == CONTENT
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(proxy.address)
    finally:
        proxy.close()

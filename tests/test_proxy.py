"""The proxy that counts: requests told apart, passed on whole, held side by side."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import s3fs

from tests.proxy import CountingProxy, ProxyProcess, Request, request_kind

MB = 1 << 20


@pytest.fixture
def proxy(s3: str) -> Iterator[CountingProxy]:
    proxy = CountingProxy(os.environ["AWS_ENDPOINT_URL"])
    yield proxy
    proxy.close()


def bucket(url: str) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(endpoint_url=url, skip_instance_cache=True, use_listings_cache=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("GET /b/a/x%20y HTTP/1.1", ("GET", "a/x y")),
        ("GET /b?list-type=2&prefix=a%2F HTTP/1.1", ("LIST", "a/")),
        ("GET /b/?prefix= HTTP/1.1", ("LIST", "")),
        ("HEAD /b HTTP/1.1", ("BUCKET", "")),
        ("GET /b?location HTTP/1.1", ("BUCKET", "")),
        ("POST /b/x?uploads HTTP/1.1", ("MULTIPART", "x")),
        ("PUT /b/x?partNumber=1&uploadId=7 HTTP/1.1", ("PART", "x")),
        ("DELETE /b/x?uploadId=7 HTTP/1.1", ("MULTIPART", "x")),
        ("POST /b?delete HTTP/1.1", ("DELETE", "")),
        ("PUT /b/x HTTP/1.1\r\nX-Amz-Copy-Source: b/y", ("COPY", "x")),
    ],
)
def test_kinds_of_requests(line, expected):
    assert request_kind(f"{line}\r\n\r\n".encode()) == expected


def test_requests_pass_whole_and_are_counted(proxy):
    """An object of one PUT and one of parts, read back; 110 MiB go up in parts of 50 MiB."""
    small, large = os.urandom(1000), os.urandom(110 * MB)
    files = bucket(proxy.url)
    files.pipe_file("milcore/proxy/small", small)
    assert files.cat_file("milcore/proxy/small", max_concurrency=1) == small
    assert proxy.take().requests == [
        Request("PUT", "proxy/small", 200, 1000, 0), Request("GET", "proxy/small", 200, 0, 1000)
    ]  # fmt: skip
    files.pipe_file("milcore/proxy/large", large)
    assert files.cat_file("milcore/proxy/large", max_concurrency=1) == large
    *parts, read = proxy.take().requests
    assert [part.kind for part in parts] == ["MULTIPART", "PART", "PART", "PART", "MULTIPART"]
    assert sum(part.sent for part in parts if part.kind == "PART") == read.received == 110 * MB


def test_an_absent_object_is_counted(proxy):
    with pytest.raises(FileNotFoundError):
        bucket(proxy.url).cat_file("milcore/proxy/absent", max_concurrency=1)
    assert [(request.kind, request.status) for request in proxy.take().requests] == [("GET", 404)]


def test_requests_are_held_side_by_side(proxy):
    """Eight at once, each held long enough for the others to come."""
    bucket(proxy.url).pipe_file("milcore/proxy/x", b"x")
    proxy.take()
    proxy.latency_s = 1.0
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: bucket(proxy.url).cat_file("milcore/proxy/x", max_concurrency=1), range(8)))
    traffic = proxy.take()
    assert (len(traffic.requests), traffic.most_at_once) == (8, 8)


def test_a_proxy_in_its_own_process(s3):
    with ProxyProcess(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        proxy.hold(0.001)
        bucket(proxy.url).pipe_file("milcore/proxy/y", b"abc")
        assert proxy.take() == {"requests": 1, "PUT": 1, "bytes_read": 0, "bytes_written": 3, "most_at_once": 1}
        assert proxy.take()["requests"] == 0

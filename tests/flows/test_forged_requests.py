"""Who does not know the password of `tailforge serve` gets nothing from its server: pages of other origins least of all."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from websockets import ConnectionClosed, InvalidStatus, Origin, Subprotocol
from websockets.sync.client import connect

from helpers.served import Served, asked, basic

EVIL = "http://evil.example"
SOCKETS = ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled", "work_pools/gpu/workers/connect"]
FORGED: dict[str, dict[str, str]] = {
    "nothing": {},
    "another host": {"host": "evil.example"},  # as after a name was pointed here
    "another host that looks right": {"host": "127.0.0.1.evil.example"},
    "another origin": {"origin": EVIL},
    "no origin": {"origin": "null"},
    "a form": {"origin": EVIL, "content_type": "text/plain"},  # what a page may send without asking
    "another password": {"authorization": basic("tailforge:guess")},
    "another form of password": {"authorization": "Bearer tailforge"},
}


@pytest.mark.fault(19, "forged Host and Origin, forms of other pages, guessed passwords, at every route of the server: refused")
def test_every_route_refuses_forged_requests(served: Served, points: Callable[[int], None]) -> None:
    known = basic(served.password)
    before = served.client.count_flow_runs()
    request = urllib.request.Request(f"{served.url}/openapi.json", headers={"Authorization": known})
    with urllib.request.urlopen(request) as answer:
        paths = json.load(answer)["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    open_to_all = {("GET", "/health"), ("GET", "/ready")}
    assert len(routes) > 100 and ("POST", "/deployments/{id}/create_flow_run") in routes
    deployment = served.client.read_deployment_by_name("scheduled/augment").id
    for method, path in sorted({*routes} - open_to_all):
        url = served.url + path.replace("{id}", str(deployment))
        for why, headers in FORGED.items() if "flow_run" in path else [("nothing", {})]:
            status, told = asked(url, method, "{}" if method in ("POST", "PATCH", "PUT") else "", **headers)
            assert status == 401 and "access-control-allow-origin" not in told, (method, path, why, status)
            points(1)
    assert served.client.count_flow_runs() == before


@pytest.mark.fault(19, "a page of another origin asks whether it may send, and may not; whatever is answered, it cannot read")
def test_other_origins_are_told_nothing(served: Served, points: Callable[[int], None]) -> None:
    url, port, known = f"{served.url}/flow_runs/count", urlsplit(served.url).port, basic(served.password)
    wants = {"access_control_request_method": "POST", "access_control_request_headers": "authorization, content-type"}
    for origin in (EVIL, "null", f"http://127.0.0.1.evil.example:{port}", f"https://127.0.0.1:{port}", "http://127.0.0.1"):
        status, told = asked(url, "OPTIONS", origin=origin, **wants)
        assert status == 400 and "access-control-allow-origin" not in told, (origin, told)
        status, told = asked(url, "POST", "{}", origin=origin, content_type="application/json", authorization=known)
        assert status == 200 and "access-control-allow-origin" not in told, (origin, told)  # to whom knows it; no page reads it
        points(2)
    own = f"http://localhost:{port}"
    assert asked(url, "OPTIONS", origin=own, **wants)[1]["access-control-allow-origin"] == own


@pytest.mark.fault(19, "WebSockets, which a page may open to anywhere: closed to whoever lacks the password")
@pytest.mark.parametrize("place", SOCKETS)
def test_sockets_want_the_password_too(served: Served, place: str, points: Callable[[int], None]) -> None:
    address = f"{served.url.replace('http', 'ws', 1)}/{place}"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin=Origin(EVIL))
    for greeting in ({"type": "auth", "token": "guess"}, {"type": "auth"}, {"type": "filter", "filter": {}}):
        with connect(address, origin=Origin(EVIL), subprotocols=[Subprotocol("prefect")]) as socket:
            socket.send(json.dumps(greeting))
            with pytest.raises(ConnectionClosed):
                while True:
                    assert "auth_success" not in str(socket.recv(timeout=60))
    points(4)

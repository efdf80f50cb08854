"""The page of `imprint data review`: a local server that shows pictures and writes decisions, and nothing else.

It listens on loopback alone. All its addresses lie under a secret that changes with every start, so no other page in a
browser can call it, and it answers to the names of loopback alone, so no foreign name that is pointed here can either.
"""

from __future__ import annotations

import fcntl
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route

from data_prep.decisions import DECISIONS, Decision, load_decisions, save_decisions
from data_prep.review.catalog import Catalog, load_catalog
from imprint.core.errors import InputError
from imprint.core.params import Section
from imprint.core.pixels import encode_image

HOST = "127.0.0.1"
LOCK = Path("work/review.lock")
VIEW_PX = 320
_PAGE = Path(__file__).with_name("page.html")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Verdicts(Section):
    """What the page sends: an item's new decision, or none to take it back."""

    id: str
    decision: Literal["keep", "drop", ""]
    note: str = ""


class Review:
    """The catalogue, and the file of decisions as it is on disk: another page or process may change it at any time."""

    def __init__(self, root: Path = Path(".")) -> None:
        self._root = root
        self._thread_lock = threading.Lock()
        decisions = load_decisions(root)
        self.catalog: Catalog = load_catalog(decisions, root)
        self.num_stale = self.catalog.resolve(decisions).count(None)

    def read(self) -> dict[str, dict[str, str]]:
        """Item id => its decision and note."""
        decisions = load_decisions(self._root)
        ids = self.catalog.resolve(decisions)
        return {
            item_id: {"decision": decision.decision, "note": decision.note}
            for item_id, decision in zip(ids, decisions, strict=True)
            if item_id
        }

    def write(self, change: Verdicts) -> None:
        """Replace one item's line; the others stay, also those that fit nothing any more."""
        with self._claim_file():
            decisions = load_decisions(self._root)
            ids = self.catalog.resolve(decisions)
            others: list[Decision] = [of for of, item_id in zip(decisions, ids, strict=True) if item_id != change.id]
            if change.decision:
                note = " ".join(change.note.split())
                others.append(self.catalog.build_decision(change.id, change.decision, note))
            save_decisions(others, self._root)

    @contextmanager
    def _claim_file(self) -> Iterator[None]:
        """Nobody else writes between our reading and our writing."""
        path = self._root / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._thread_lock, path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def build_app(review: Review, secret: str) -> Starlette:
    """The application; every address starts with `/<secret>/`."""

    def show_page(_: Request) -> Response:
        return HTMLResponse(_PAGE.read_text(), headers=_HEADERS)

    def list_items(_: Request) -> Response:
        items = [_describe(review.catalog, item_id) for item_id in review.catalog.items]
        return JSONResponse({"items": items, "stale": review.num_stale}, headers=_HEADERS)

    def list_decisions(_: Request) -> Response:
        return JSONResponse(review.read(), headers=_HEADERS)

    async def decide(request: Request) -> Response:
        try:
            change = Verdicts.model_validate_json(await request.body())
        except ValidationError:
            return Response("no decision", 400, headers=_HEADERS)
        if change.id not in review.catalog.items:
            return Response(f"{change.id} is not in the data set", 404, headers=_HEADERS)
        review.write(change)
        return list_decisions(request)

    def show_view(request: Request) -> Response:
        places = request.path_params
        view = review.catalog.gallery.views.get((places["clip"], places["track"], places["frame"]))
        if view is None:
            return Response("no such view", 404, headers=_HEADERS)
        picture = encode_image(review.catalog.gallery.draw_view(view, VIEW_PX), ".jpg", 90)
        return Response(picture, media_type="image/jpeg", headers=_HEADERS | {"Cache-Control": "private, max-age=3600"})

    def explain(_: Request, error: Exception) -> Response:
        return Response(str(error), 409, headers=_HEADERS)

    routes = [
        Route("/", show_page),
        Route("/items", list_items),
        Route("/decisions", list_decisions, methods=["GET"]),
        Route("/decisions", decide, methods=["POST"]),
        Route("/views/{clip}/{track:int}/{frame:int}.jpg", show_view),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    return Starlette(
        routes=[Mount(f"/{secret}", routes=routes)], middleware=[hosts], exception_handlers={InputError: explain}
    )


def run_review(port: int = 0, browser: bool = True, root: Path = Path(".")) -> None:
    """Serve until Ctrl-C. `InputError` if data is missing, or the port is taken."""
    import uvicorn

    review, secret = Review(root), secrets.token_urlsafe(16)
    listener = _listen(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/{secret}/"
    print(f"Review: {address}", flush=True)
    print(f"Decisions go to {DECISIONS}; `dvc repro` applies them. Ctrl-C ends.", flush=True)
    if review.num_stale:
        print(f"{review.num_stale} of its lines fit nothing that is there now; they stay as they are.", file=sys.stderr)
    if browser:
        webbrowser.open(address)
    config = uvicorn.Config(build_app(review, secret), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # from here on a browser waits for the server instead of being refused
    except OSError as error:
        raise InputError(f"port {port} cannot be had ({error.strerror}); give another --port, or none") from None
    return listener


def _describe(catalog: Catalog, item_id: str) -> dict[str, Any]:
    item = catalog.items[item_id]
    kind, clip_id, track, _, _ = item.key
    return {
        "id": item_id,
        "kind": kind,
        "clip": item.clip,
        "track": track,
        "views": [f"views/{clip_id}/{track}/{frame}.jpg" for frame in item.frames],
        "frames": list(item.frames),
        "facts": item.facts,
        "doubt": item.doubt,
        "draw": item.draw,
    }

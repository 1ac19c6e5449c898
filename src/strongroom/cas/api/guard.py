"""Every error as the JSON that `errors.from_wire` reads, with a status that tells callers what to do about it."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from strongroom.cas.api.bodies import BODY_SECONDS, NotJsonError, TooSlowError
from strongroom.cas.api.callers import AttestFirstError
from strongroom.cas.api.commits import ASK_AGAIN
from strongroom.cas.api.endpoint import Handler
from strongroom.cas.wire import ATTEST_FIRST
from strongroom.errors import (
    AttestationError,
    CasError,
    ChannelError,
    ConflictError,
    DatabaseError,
    FormatError,
    InstanceLimitError,
    NotReadyError,
    RollbackError,
    StrongroomError,
    TooManyRequestsError,
    UnauthorizedError,
    UnknownPolicyError,
    UnsupportedPlatformError,
    UsageError,
)

_log = logging.getLogger("strongroom.cas")

_STATUS: list[tuple[type[StrongroomError], int]] = [
    (NotReadyError, 503),
    (UnsupportedPlatformError, 404),
    (TooManyRequestsError, 429),
    (UnknownPolicyError, 404),
    (UnauthorizedError, 403),
    (AttestationError, 403),
    (ConflictError, 409),
    (InstanceLimitError, 409),
    (RollbackError, 409),
    (FormatError, 400),
    (UsageError, 400),
]


async def no_such(request: Request, error: Exception) -> Response:
    """The answer to a path or a method that is not."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    problem = UsageError(
        "request: the CAS knows no such path and method",
        hint="docs/spec/cas.md lists them; `strongroom cas status` shows the CAS's version",
    )
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse(problem.to_wire(), status_code=status, headers=headers)


def guarded(handler: Handler) -> Handler:
    """Answer every error in JSON, and never with a stack trace."""

    async def guard(request: Request) -> Response:
        try:
            return await handler(request)
        except AttestFirstError as first:
            return JSONResponse(first.error.to_wire(), status_code=ATTEST_FIRST)
        except DatabaseError as error:
            # Where it keeps its state is of no interest to callers.
            _log.error("request failed: %s %r: %s", request.method, request.url.path[:200], error.message)
            unusable = DatabaseError("request: the CAS's database cannot be used now", hint=ASK_AGAIN)
            return JSONResponse(unusable.to_wire(), status_code=503)
        except StrongroomError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            if status == 500:
                _log.error("request failed: %s %r: %s", request.method, request.url.path[:200], error.message)
            headers = {"retry-after": str(error.seconds)} if isinstance(error, TooManyRequestsError) else None
            return JSONResponse(error.to_wire(), status_code=status, headers=headers)
        except NotJsonError:
            unsaid = UsageError("request: its content type is another, wanted application/json")
            return JSONResponse(unsaid.to_wire(), status_code=415)
        except TooSlowError:
            late = ChannelError(
                f"request: its body did not arrive within {BODY_SECONDS} seconds", hint="connect and ask again"
            )
            return JSONResponse(late.to_wire(), status_code=408)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception:
            _log.exception("request failed: %s %r", request.method, request.url.path[:200])
            failure = CasError("request: the CAS failed to handle it", hint="its own log says why")
            return JSONResponse(failure.to_wire(), status_code=500)

    return guard

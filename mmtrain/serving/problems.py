"""What a server answers in place of an answer: a status, and cause, value and remedy in words."""

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pipelines.errors import MMTrainError

logger = logging.getLogger(__name__)


class RequestError(MMTrainError):
    """A request that is not answered.

    Args:
        status: of HTTP, 4xx or 5xx.
        cause: what is wrong.
        value: what was given, shortened.
        remedy: what to do.
        headers: that go with it.
    """

    def __init__(
        self,
        status: int,
        cause: str,
        *,
        value: str = "",
        remedy: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, cause)
        self.status, self.cause, self.headers = status, cause, dict(headers or {})
        self.value, self.remedy = value[:200], remedy

    def __str__(self) -> str:
        return "; ".join(part for part in (self.cause, self.value, self.remedy) if part)

    def to_dict(self) -> dict[str, str]:
        """As JSON holds it."""
        return {"cause": self.cause, "value": self.value, "remedy": self.remedy}

    def to_response(self) -> JSONResponse:
        """As HTTP sends it."""
        return JSONResponse(self.to_dict(), status_code=self.status, headers=self.headers)


def to_problem(error: Exception, *, where: str) -> RequestError:
    """What is answered where an error ended a request.

    Args:
        error: whatever was raised; what is not the client's to mend is logged.
        where: method and path of the request.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MMTrainError):
        return RequestError(422, str(error), remedy="GET /v1/tasks lists what there is")
    if isinstance(error, HTTPException):
        status, phrase = error.status_code, HTTPStatus(error.status_code).phrase.lower()
        return RequestError(status, phrase, value=where, remedy="see /docs", headers=error.headers)
    logger.error("%s failed", where, exc_info=error)
    mistake = type(error).__name__
    return RequestError(500, "the server made a mistake", value=mistake, remedy="see its log")


def too_large(what: str, *, size: float, most: float, unit: str) -> RequestError:
    """A body or an input over a bound."""
    return RequestError(
        413,
        f"{what} too large",
        value=f"{size:,.0f} {unit}",
        remedy=f"send at most {most:,.0f} {unit}",
    )


def too_busy(*, held: str, retry_after_s: float) -> RequestError:
    """The house is full."""
    seconds = max(1, math.ceil(retry_after_s))
    return RequestError(
        429,
        "the server is busy",
        value=held,
        remedy=f"try again in {seconds} s",
        headers={"Retry-After": str(seconds)},
    )

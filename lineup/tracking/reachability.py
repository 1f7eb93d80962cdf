"""Whether a tracking server answers, known before MLflow is imported, which takes seconds."""

from __future__ import annotations

import os
import re

import requests

from lineup.errors import UserError
from lineup.tracking import location

# MLflow's own setting, for who would rather wait; read before we set it for MLflow
ANSWER_TIMEOUT_SECONDS = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or 5)
DAMAGED = ("file is not a database", "disk image is malformed")  # SQLite's words
BROKEN = {500, 502, 503, 504}  # statuses of a server that is in trouble, whatever is asked
LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
REFUSALS = {
    401: f"it knows no such user and password; set {LOGIN}",
    403: f"this user may not do that; ask for the permission, or set {LOGIN} to another's",
}


class StoreError(Exception):
    """The tracking store can't be used now: the reason in one line."""


def check_store() -> None:
    """Raise StoreError within seconds where a server does not answer; UserError for file stores."""
    uri, registry_uri = location.store_uri(), location.registry_uri()
    _check("MLFLOW_TRACKING_URI", uri)
    if registry_uri != uri:
        _check("MLFLOW_REGISTRY_URI", registry_uri)


def _check(variable: str, uri: str) -> None:
    if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):
        message = f"MLflow has no file stores any more; unset {variable}, or name a server"
        raise UserError(f"{variable}={uri}: {message} or sqlite:///mlflow.db")
    if not uri.startswith(("http://", "https://")):
        return
    try:
        status = requests.head(uri, timeout=ANSWER_TIMEOUT_SECONDS).status_code
    except requests.exceptions.SSLError:
        return  # it answers; MLflow has settings for this
    except requests.exceptions.Timeout:
        raise StoreError(f"no answer within {ANSWER_TIMEOUT_SECONDS:.0f} s") from None
    except requests.exceptions.ConnectionError:
        raise StoreError("nothing listens there") from None
    except requests.exceptions.RequestException as error:
        raise StoreError(f"{variable} is no address: {error}") from None
    if status in BROKEN:
        raise StoreError(f"it answers with status {status}")


def summary(error: Exception) -> str:
    """Return in one line why the store failed, and what to do where that is known."""
    text = location.without_password(str(error).strip()) or type(error).__name__
    if "Invalid Host header" in text:
        return "it does not know itself by this name; start it with --allowed-hosts"
    if refusal := REFUSALS.get(_status(error)):
        return refusal
    if failure := _server_failure(text):
        return failure
    line = text.splitlines()[0][:200]
    is_damaged = any(words in text for words in DAMAGED)
    return f"{line}; move it away, and make sync records all runs anew" if is_damaged else line


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error of requests or MLflow, which is not imported here."""
    if isinstance(error, requests.HTTPError):
        return getattr(error.response, "status_code", None)
    status = getattr(error, "get_http_status_code", None)
    return status() if status else None


def _server_failure(text: str) -> str:
    """Return what a server's failure is, "" where the text is not of one."""
    subject = "its artifact store" if "/mlflow-artifacts/" in text else "it"
    if found := re.search(r"too many (\d+) error responses", text):
        return f"{subject} fails with status {found[1]}"
    return f"{subject} does not answer in time" if "Read timed out" in text else ""

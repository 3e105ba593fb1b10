"""Check of Kubeflow Pipelines by the HTTP answer of its API, without kfp."""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Generator
from typing import Any

from milcore.cluster.doctor.finding import Finding, failure, ok, warning
from milcore.errors import InputError

TIMEOUT_S = 10
# the first that brings the object store of k8s/base, and the last that has run
LEAST, LAST = (2, 15), (2, 17)


def check_host(host: str) -> str:
    """Address of Kubeflow Pipelines without a slash at its end.

    Raises:
        InputError: it is no address.
    """
    if not re.fullmatch(r"https?://(?:\[[^]\s]+]|[^/\s:]+)(?::\d+)?(?:/\S*)?", host):
        raise InputError(f"--kfp: expected an address, got {host!r}; allowed: http(s)://HOST[:PORT]")
    return host.rstrip("/")


def kubeflow_findings(host: str) -> Generator[Finding]:
    """Ask for the version of Kubeflow Pipelines at an address."""
    remedy = "give the address of its UI or API, for example by `kubectl port-forward` of ml-pipeline-ui"
    try:
        with urllib.request.urlopen(f"{host}/apis/v2beta1/healthz", timeout=TIMEOUT_S) as answer:  # noqa: S310 - http(s)
            values = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            yield warning("Kubeflow Pipelines", f"it asks for a login: {error.code}", "submit with --token-file")
        else:
            yield failure("Kubeflow Pipelines", f"it answers {error.code} {error.reason}", remedy)
    except (OSError, ValueError, http.client.HTTPException) as error:
        yield failure("Kubeflow Pipelines", f"no API of it answers: {error}", remedy)
    else:
        yield version_finding(values)


def version_finding(values: Any) -> Finding:
    """Judge the version in a health answer of the API or UI."""
    values = values if isinstance(values, dict) else {}
    text = str(values.get("tag_name") or values.get("apiServerTagName") or "unknown")
    version = re.match(r"v?(\d+)\.(\d+)", text)
    if version is None:
        return warning("Kubeflow Pipelines", f"it answers, of version {text}", "milcore is made for 2.15 to 2.17")
    number = (int(version[1]), int(version[2]))
    if number < LEAST:
        return failure("Kubeflow Pipelines", f"version {text}, older than 2.15", "upgrade it to 2.15 to 2.17")
    if number > LAST:
        return warning("Kubeflow Pipelines", f"version {text}, newer than 2.17, the last that ran", "try a small run")
    return ok("Kubeflow Pipelines", f"version {text}")

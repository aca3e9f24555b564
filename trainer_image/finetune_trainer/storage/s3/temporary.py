"""Marks the objects of a job that are not results, so that a lifecycle rule of the bucket can delete leftovers.

A prefix of a lifecycle rule takes no wildcards, and the work folder of each job lies next to its own output. So the
objects carry a tag."""

from collections.abc import Callable, Mapping
from typing import TypeVar
from urllib.parse import urlencode

from botocore.exceptions import ClientError

from finetune_api import names

TAGGED = {"Tagging": urlencode({names.TEMPORARY_TAG: "true"})}
"""Argument of a request that writes an object."""
REFUSALS = {"AccessDenied", "InvalidArgument", "InvalidRequest", "InvalidTag", "MethodNotAllowed", "NotImplemented"}
"""Codes with which services answer a request whose tag they do not support or do not allow."""

REFUSED_TIMES = 3
"""One refusal can pass: a policy that is being changed."""

Written = TypeVar("Written")


class TemporaryTag:
    """Adds the tag to what is written below one prefix, until the storage has refused it REFUSED_TIMES in a row."""

    def __init__(self, prefix: str) -> None:
        """`prefix`: a URI that ends with a slash."""
        self._prefix, self._refused = prefix, 0

    def write(self, uri: str, send: Callable[[Mapping[str, str]], Written]) -> Written:
        """Calls `send` with the arguments that an object at `uri` needs, and returns its result.

        If the storage refuses the tag, calls `send` again without it."""
        if self._refused >= REFUSED_TIMES or not uri.startswith(self._prefix):
            return send({})
        try:
            written = send(TAGGED)
            self._refused = 0
            return written
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code not in REFUSALS:
                raise
            written = send({})
        self._refused += 1
        which = f"temporary files below {self._prefix}" if self._refused >= REFUSED_TIMES else uri
        print(
            f"The storage refuses the tag {names.TEMPORARY_TAG} ({code}). No lifecycle rule deletes what has no tag: "
            f"{which}.",
            flush=True,
        )
        return written

    def of_copy(self, uri: str, to: str) -> dict[str, str]:
        """Returns the argument of a request that copies the object `uri` to `to`. By default a copy has the tags of the
        original, and a lifecycle rule would delete results that were copied from a temporary object. An earlier pod can
        have tagged the original also where this one may not."""
        tagged = uri.startswith(self._prefix) and not to.startswith(self._prefix)
        return {"TaggingDirective": "REPLACE"} if tagged else {}

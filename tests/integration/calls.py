"""One request that a proxy has seen."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Call:
    """One request of the operator; `status` is the answer's HTTP code, 0 while there is none."""

    method: str
    path: str
    body: Any = None
    status: int = 0

    @property
    def is_write(self) -> bool:
        return self.method != "GET"

    def makes(self, resource: str) -> bool:
        return self.method == "POST" and self.path.endswith(f"/{resource}")

    @property
    def makes_groundwork(self) -> bool:
        """Whether it makes what all jobs of a namespace share."""
        return self.makes("serviceaccounts") or self.makes("rolebindings")

    @property
    def writes_status(self) -> bool:
        return self.method == "PATCH" and self.path.endswith("/status")

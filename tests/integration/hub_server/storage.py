"""The server of the storage."""

from tests.integration.hub_server.handler import Handler


class StorageHandler(Handler):
    """Serves the files in LFS at signed URLs. It knows no tokens."""

    def answer(self) -> None:
        data = self.hub.objects.at(self.path)
        if data is None or self.hub.faults.used_up("expired"):
            if together := self.hub.faults.together:
                together.wait(timeout=30)
            self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        self.content(data, may_cut=True)

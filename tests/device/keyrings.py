"""Keyrings of a system that a test makes up."""

from __future__ import annotations

import threading

from keyring.backend import KeyringBackend


class MemoryKeyring(KeyringBackend):
    """A keyring that keeps what it is given, until the test ends."""

    priority = 5

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.held[service, username]


class WeakKeyring(MemoryKeyring):
    """A keyring that keeps secrets in the open, as some do that systems have to offer."""

    priority = 0.5


class ForgetfulKeyring(MemoryKeyring):
    """A keyring that takes everything and keeps nothing."""

    def set_password(self, service: str, username: str, password: str) -> None:
        return None


class LockedKeyring(MemoryKeyring):
    """A keyring that the person does not open."""

    def get_password(self, service: str, username: str) -> str | None:
        raise RuntimeError("dismissed: the secret is hunter2")

    def set_password(self, service: str, username: str, password: str) -> None:
        raise RuntimeError("dismissed: the secret is hunter2")

    def delete_password(self, service: str, username: str) -> None:
        raise RuntimeError("dismissed: the secret is hunter2")


class SilentKeyring(MemoryKeyring):
    """A keyring that asks somebody who is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def set_password(self, service: str, username: str, password: str) -> None:
        self.asked.wait()


class SlowKeyring(MemoryKeyring):
    """A keyring that answers when the person has typed its password."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.answers = threading.Event()
        self.answers.set()

    def get_password(self, service: str, username: str) -> str | None:
        if not self.answers.is_set():
            self.asked.set()
        self.answers.wait()
        return super().get_password(service, username)

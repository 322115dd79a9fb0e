"""What a person does with their keys at the terminal: nothing secret is an argument or is echoed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.main import get_command

from mana.cli.commands.security import security
from mana.device.views import RotationView
from tests.cli.terminal import PASSWORD, Terminal, signed_up, with_proposals
from tests.web.fake_security import CODES, DIGITS, SECRET, TOTP_CODE

NEW = "five words nobody would guess"


def test_no_secret_is_an_argument() -> None:
    """No command of security takes a password, code of recovery, factor or token as an argument."""
    taken = {
        name
        for command in get_command(security).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for name in (parameter.name, *parameter.opts)
    }
    assert not taken & {"--password", "password", "--code", "code", "--token", "token", "--new"}


def test_the_status_tells_how_the_account_stands() -> None:
    """Mode, code, factors and what is sealed anew stand there, for people and for programs."""
    terminal = signed_up()
    keys = terminal.device.security
    keys.rotating = [RotationView(terminal.device.space_id, "key", 3, 77, 100)]
    printed = terminal.ok("security", "status")
    assert "23 % still under an older key" in printed
    document = terminal.json("security", "status")["security"]
    assert document["mode"] == "standard"
    assert document["recoverySetAt"] is None
    assert document["rotations"][0]["percent"] == 77


def test_a_password_is_changed_from_prompts_that_do_not_echo() -> None:
    """Old and new password are asked for hidden, the new one twice; unequal ones change nothing."""
    terminal = signed_up()
    terminal.environ = {}
    answers = [PASSWORD, PASSWORD, NEW, "another"]
    terminal.hidden = lambda question: answers.pop(0)
    refused = terminal.run("security", "password")
    assert (refused.status, refused.out) == (2, "")
    assert terminal.device.security.password == PASSWORD
    answers = [PASSWORD, PASSWORD, NEW, NEW]
    done = terminal.run("security", "password")
    assert done.status == 0, done
    assert NEW not in done.out + done.err
    assert terminal.device.security.password == NEW


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    """A script gives the new password by a file; without any source it is told what to set."""
    terminal = signed_up()
    none = terminal.run("security", "password", "--json")
    assert (none.status, none.problem["code"]) == (4, "SECRET_NEEDED")
    file = tmp_path / "new"
    file.write_text(NEW + "\n", "utf-8")
    terminal.environ["MANA_NEW_PASSWORD_FILE"] = str(file)
    terminal.ok("security", "password")
    assert terminal.device.security.password == NEW
    terminal.environ["MANA_NEW_PASSWORD_FILE"] = str(tmp_path / "gone")
    terminal.environ["MANA_PASSWORD"] = NEW
    gone = terminal.run("security", "password", "--json")
    assert (gone.status, gone.problem["code"]) == (2, "PASSWORD_FILE_UNREADABLE")


def test_a_recovery_code_is_shown_until_it_is_kept() -> None:
    """The code stays to be seen until the person says so; another one needs a yes."""
    terminal = signed_up()
    made = terminal.json("security", "recovery", "make")["kit"]
    assert made["code"] == CODES[0]
    assert terminal.json("security", "recovery")["kit"]["code"] == CODES[0]
    unasked = terminal.run("security", "recovery", "make", "--json")
    assert unasked.problem["code"] == "CONFIRMATION_NEEDED"
    terminal.says = False
    assert terminal.run("security", "recovery", "kept").status == 1
    assert terminal.json("security", "recovery")["kit"]["code"] == CODES[0]
    terminal.ok("security", "recovery", "kept", "--yes")
    assert terminal.json("security", "recovery")["kit"] is None


def test_a_lost_password_has_two_ways_back() -> None:
    """Code or token and a new password sign in on a device that knows nothing of the account."""
    terminal = signed_up()
    terminal.ok("security", "recovery", "make")
    terminal.ok("account", "sign-out", "--yes")
    terminal.environ = {"MANA_RECOVERY_CODE": CODES[1], "MANA_NEW_PASSWORD": NEW}
    assert terminal.run("account", "recover", "ada").status == 4
    terminal.environ["MANA_RECOVERY_CODE"] = CODES[0]
    assert "Signed in as ada." in terminal.ok("account", "recover", "ada")
    terminal.environ = {"MANA_RESET_TOKEN": "token-of-the-operator", "MANA_NEW_PASSWORD": PASSWORD}
    assert "Signed in as ada." in terminal.ok("account", "reset", "ada")


def test_a_second_factor_is_asked_for() -> None:
    """A sign-in asks for the code hidden, and says so where nobody can be asked."""
    terminal = signed_up()
    terminal.ok("account", "sign-out", "--yes")
    terminal.host.totp = TOTP_CODE
    refused = terminal.run("account", "sign-in", "ada", "--json")
    assert (refused.status, refused.problem["code"]) == (4, "TWO_FACTOR_REQUIRED")
    terminal.hidden = lambda question: "000000"
    assert terminal.run("account", "sign-in", "ada").status == 4
    terminal.hidden = lambda question: TOTP_CODE
    assert "Signed in" in terminal.ok("account", "sign-in", "ada")


def test_an_authenticator_is_added_and_its_secret_is_no_answer() -> None:
    """The secret is told on standard error to a person alone; a wrong code adds nothing."""
    terminal = signed_up()
    terminal.environ["MANA_FACTOR_CODE"] = "999999"
    assert terminal.run("security", "factors", "--add", "Phone").status == 4
    terminal.environ["MANA_FACTOR_CODE"] = TOTP_CODE
    added = terminal.run("security", "factors", "--add", "Phone")
    assert SECRET in added.err
    assert SECRET not in added.out
    (one,) = terminal.json("security", "factors")["factors"]
    assert (one["name"], one["kind"]) == ("Phone", "totp")
    terminal.ok("security", "factors", "--remove", "Phone")
    assert terminal.json("security", "factors")["factors"] == []


def test_a_mode_is_switched_after_a_yes() -> None:
    """What it cannot do for the past is in the question; no yes changes nothing."""
    terminal = signed_up()
    terminal.says = False
    assert terminal.run("security", "mode", "zero-knowledge").status == 1
    assert "cannot protect the past" in terminal.asked[-1]
    assert terminal.device.security.mode == "standard"
    made = terminal.json("security", "mode", "zero-knowledge", "--yes")
    assert made["mode"] == "zero-knowledge"
    assert made["kit"]["code"] in CODES
    assert "already" in terminal.ok("security", "mode", "zero-knowledge", "--yes")
    refused = terminal.run("security", "recovery", "remove", "--yes", "--json")
    assert refused.problem["code"] == "RECOVERY_WRAP_MISSING"


def test_an_account_begins_in_zero_knowledge_mode() -> None:
    """It leads to the recovery code first."""
    terminal = Terminal()
    said = terminal.ok("account", "create", "ada", "--zero-knowledge")
    assert "mana security recovery show" in said
    assert terminal.json("security", "recovery")["kit"]["code"] in CODES


def test_a_new_device_is_let_in_by_digits_alone() -> None:
    """Other digits, or a no, let nobody in; `--yes` is no answer to it."""
    terminal = signed_up()
    link_id = terminal.device.links.ask()
    assert "New laptop" in terminal.ok("security", "link")
    assert terminal.run("security", "link", "--approve", "1a2b3c4d", "--yes").status == 2
    unasked = terminal.run("security", "link", "--approve", "1a2b3c4d", "--json")
    assert unasked.problem["code"] == "CONFIRMATION_NEEDED"
    other = terminal.run("security", "link", "--approve", "laptop", "--digits", "123456 654322")
    assert other.status == 5
    terminal.says = False
    assert terminal.run("security", "link", "--approve", "laptop").status == 1
    assert DIGITS in terminal.asked[-1]
    assert terminal.device.links.let_in == []
    terminal.ok("security", "link", "--approve", "laptop", "--digits", DIGITS)
    assert terminal.device.links.let_in == [link_id]
    second = terminal.device.links.ask("9" * 32, "Stranger")
    terminal.ok("security", "link", "--refuse", "stranger")
    assert second not in terminal.device.links.asking


def test_a_device_is_brought_in_by_another_after_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits are shown before the question; a no opens nothing and gives the link up."""
    monkeypatch.setattr("mana.cli.commands.account.LOOK_S", 0.0)
    terminal = signed_up()
    terminal.ok("account", "sign-out", "--yes")
    terminal.says = False
    refused = terminal.run("account", "link", "ada")
    assert refused.status == 1
    assert DIGITS in refused.err
    assert terminal.json("account", "list")["accounts"] == []
    assert terminal.host.given_up == 1
    terminal.says = True
    assert "Signed in as ada." in terminal.run("account", "link", "ada").out


def test_grants_are_listed_with_who_gave_them() -> None:
    """Agent, life, model and grantor of each grant stand in one list."""
    terminal = with_proposals()
    (one,) = terminal.json("security", "grants")["grants"]
    assert (one["agent"], one["grantedBy"]) == ("Mira", "you")
    assert one["grant"]["state"] == "active"
    assert "Weekly review" in terminal.ok("security", "grants")


def test_the_device_at_hand_is_not_revoked() -> None:
    """Another device is revoked after a yes; this one says what to do instead."""
    terminal = signed_up()
    own = terminal.run("security", "devices", "--revoke", "Laptop", "--yes", "--json")
    assert own.problem["code"] == "DEVICE_IN_USE"
    terminal.ok("security", "devices", "--revoke", "Telephone", "--yes")
    states = {
        one["name"]: one["revokedAt"] for one in terminal.json("security", "devices")["devices"]
    }
    assert states["Laptop"] is None
    assert states["Telephone"] is not None


def test_without_a_keyring_it_says_what_to_do() -> None:
    """A system without a keyring leaves things as they are."""
    terminal = signed_up()
    terminal.device.keyring.is_there = False
    refused = terminal.run("security", "keyring", "on", "--json")
    assert (refused.status, refused.problem["code"]) == (6, "KEYRING_UNAVAILABLE")
    terminal.ok("security", "auto-lock", "15")
    assert terminal.device.security.minutes == 15

"""Whoever is not root and gets no namespaces is told which setting forbids them."""

import os
from pathlib import Path

import pytest

from shoal_executor.drivers.rootless import hint

REFUSED = "the fork server of template host failed: [Errno 1] unshare 0x10020000: Operation not permitted"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("kernel", "user"):
        (tmp_path / name).mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("95000\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1\n",
            "'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0' as root, for it is 1",
        ),
        (
            "kernel/unprivileged_userns_clone",
            "0\n",
            "'sysctl -w kernel.unprivileged_userns_clone=1' as root, for it is 0",
        ),
        ("user/max_user_namespaces", "0\n", "'sysctl -w user.max_user_namespaces=15000' as root, for it is 0"),
    ],
)
def test_the_setting_that_forbids_them_is_named_with_the_command(
    settings: Path, name: str, value: str, said: str
) -> None:
    (settings / name).write_text(value)
    assert hint(REFUSED, settings) == f"; run the executor as root, or allow user namespaces to this user: {said}"


def test_settings_that_forbid_nothing_are_not_named(settings: Path) -> None:
    (settings / "kernel/apparmor_restrict_unprivileged_userns").write_text("0\n")
    (settings / "kernel/unprivileged_userns_clone").write_text("1\n")
    assert "sysctl" not in hint(REFUSED, settings)
    assert "container" in hint(REFUSED, settings)


def test_a_setting_that_only_root_may_read_is_named_with_an_if(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = settings / "kernel/apparmor_restrict_unprivileged_userns"
    secret.write_text("1\n")
    read_text = Path.read_text

    def refused(path: Path) -> str:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", refused)
    assert hint(REFUSED, settings).endswith(
        ": 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0' as root if it is 1"
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("[Errno 13] mount bind at /: Permission denied", True),
        ("[Errno 28] unshare 0x10020000: No space left on device", True),
        ("libseccomp is missing", False),
    ],
)
def test_an_error_of_another_kind_is_left_alone(settings: Path, error: str, told: bool) -> None:
    assert bool(hint(error, settings)) == told


def test_root_is_told_nothing_of_it(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert hint(REFUSED, settings) == ""

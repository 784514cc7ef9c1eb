"""Credentials that are replaced, and for a moment are not whole."""

from __future__ import annotations

import json
from pathlib import Path

import kopf
import pytest
from tandem_operator.cluster.credentials import Credentials, NoCredentials, login

CONFIG = {
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443"}}],
    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "c",
    "users": [{"name": "u", "user": {"token": "old"}}],
}
UNUSABLE = {
    "empty": "",
    "a word": "clusters",
    "without its end": json.dumps(CONFIG)[:70],
    "without contexts": json.dumps({**CONFIG, "contexts": []}),
    "without a user": json.dumps({**CONFIG, "users": []}),
    "without a server": json.dumps({**CONFIG, "clusters": [{"name": "c"}]}),
    "an authority that is none": json.dumps(
        {**CONFIG, "clusters": [{"name": "c", "cluster": {"server": "https://a", "certificate-authority-data": "abc"}}]}
    ),
    "a folder": None,
}


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config"
    path.write_text(json.dumps(CONFIG))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


@pytest.mark.parametrize("text", UNUSABLE.values(), ids=UNUSABLE)
def test_kubeconfig_that_cannot_be_used_for_a_moment_leaves_those_before(kubeconfig: Path, text: str | None) -> None:
    """Symptom: read while it was being written, it ended the operator with a traceback of kopf's or of YAML's."""
    credentials = Credentials(login)
    good = credentials.current()
    if text is None:
        kubeconfig.unlink()
        kubeconfig.mkdir()
    else:
        kubeconfig.write_text(text)
    credentials.refused()
    assert credentials.current() == good
    if text is None:
        kubeconfig.rmdir()
    kubeconfig.write_text(json.dumps({**CONFIG, "users": [{"name": "u", "user": {"token": "new"}}]}))
    assert credentials.current()[0].token == "new"


def test_kubeconfig_that_cannot_be_used_at_first_is_one_error_of_ours(kubeconfig: Path) -> None:
    kubeconfig.write_text("")
    with pytest.raises(NoCredentials, match="kubeconfig: LoginError: Current context is not set"):
        Credentials(login)


def test_file_that_is_away_for_a_moment_leaves_those_before() -> None:
    """The kubelet replaces the token of a service account while we read."""
    answers = iter([kopf.ConnectionInfo(server="https://a", token="old"), OSError("stale"), NoCredentials("none")])

    def from_files() -> kopf.ConnectionInfo:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    credentials = Credentials(from_files)
    for _ in range(2):
        credentials.refused()
        assert credentials.current()[0].token == "old"
    assert not list(answers)

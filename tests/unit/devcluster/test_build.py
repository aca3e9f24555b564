"""Built programs are found by a digest of their sources."""

from pathlib import Path

import pytest

from devcluster import build


def test_a_changed_source_is_another_build(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main")
    before = build._digest(tmp_path, "1.0.0")

    (tmp_path / "main.go").write_text("package main // changed")

    assert build._digest(tmp_path, "1.0.0") != before
    assert build._digest(tmp_path, "1.0.1") != build._digest(tmp_path, "1.0.0")


def test_a_failed_build_leaves_nothing_that_looks_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_go", lambda: "/bin/false")

    with pytest.raises(build.ClusterError, match="Building devcluster/kube failed"):
        build.built()

    assert [path.name for path in tmp_path.iterdir()] == ["build.lock"]


def test_the_next_build_deletes_the_half_of_one_that_was_killed(tmp_path: Path) -> None:
    half = tmp_path / "building-kube-1.0.0"
    half.mkdir()
    (half / "kube").write_text("half of a program")

    with build._draft_of(tmp_path / "kube-1.0.0") as draft:
        assert list(draft.iterdir()) == []

    assert [path.name for path in tmp_path.iterdir()] == ["kube-1.0.0"]


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")

    assert build.cache_folder() == Path("/x/finetune-operator")

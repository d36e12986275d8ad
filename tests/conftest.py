"""Shapes in signatures are checked while the tests run; data sets are found by one environment variable."""

import os
from pathlib import Path

import jaxtyping

jaxtyping.install_import_hook("selfsight", "typecheck.checked")

import pytest  # noqa: E402
import torch  # noqa: E402

from selfsight.allocator import keep_freed_memory  # noqa: E402

keep_freed_memory()
torch.set_num_threads(1)  # two workers share two cores


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip that says what is missing."""
    folder = Path(os.environ.get("SELFSIGHT_DATA", "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: SELFSIGHT_DATA={folder} is not a folder")
    return folder.resolve()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never touch the user's cache."""
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first and each by itself, so that no worker waits at the end; each other file in one."""
    for item in items:
        file, *_ = item.nodeid.split("::")
        item.add_marker(pytest.mark.xdist_group(item.nodeid if "test_learning" in file else file))
    items.sort(key=lambda item: "test_learning" not in item.nodeid)

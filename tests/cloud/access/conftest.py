"""One certificate for all tests of callers."""

from __future__ import annotations

import pytest

from cloud.tls import TlsPaths, ensure_local_tls


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsPaths:
    return ensure_local_tls(tmp_path_factory.mktemp("tls"), "127.0.0.1")

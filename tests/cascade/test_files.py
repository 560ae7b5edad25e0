"""Files that are whole or absent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cascade.files import write_new


def test_of_several_that_make_a_file_at_once_one_is_there_as_a_whole(tmp_path):
    path = tmp_path / "deep" / "key"
    said = [str(number).encode() * 1000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write_new(path, data, private=True), said))
    kept = path.read_bytes()
    assert kept in said
    write_new(path, b"later")
    assert path.read_bytes() == kept
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]

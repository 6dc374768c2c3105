"""Rows of a Parquet file in any order: a row group is read once while it is kept, and what is kept has a limit."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitprobe.inputs.archives import _RowGroups


def test_row_groups_are_kept_up_to_a_number_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads, read = str(tmp_path / "a.parquet"), [], pq.ParquetFile.read_row_group
    pq.write_table(pa.table({"image": [bytes([row]) * 1000 for row in range(6)]}), path, row_group_size=2)

    def counted(self: pq.ParquetFile, group: int, **options: object) -> pa.Table:
        reads.append(group)
        return read(self, group, **options)

    def rows(groups: object, *wanted: int) -> list[int]:
        return [groups.read(path, "image", row // 2, modified=1)[row % 2].as_py()[0] for row in wanted]

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    groups = _RowGroups(5000)  # two groups of 2,000 bytes and a little
    assert rows(groups, 0, 3, 1, 2, 0) == [0, 3, 1, 2, 0]
    assert reads == [0, 1]
    assert rows(groups, 5, 0, 3) == [5, 0, 3]  # the third takes the place of the one that was asked for longest ago
    assert reads == [0, 1, 2, 1]
    groups.read(path, "image", 1, modified=2)  # the file was written anew
    assert reads[-1] == 1 and len(reads) == 5
    assert rows(_RowGroups(0), 0, 1, 4) == [0, 1, 4]  # the newest is kept whatever its size
    assert reads[5:] == [0, 2]

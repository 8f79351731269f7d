"""Entries of `datasets:`, and what the log says of them."""

from pathlib import Path

from tests.tiny import write_jsonl


def entry(path: Path, rows: list[dict] | None = None, **options) -> dict:
    """An entry for a file, which is written first where there are rows."""
    if rows is not None:
        write_jsonl(path, rows)
    return {"path": str(path), **options}


def counts_in(log: str) -> dict[str, int]:
    """The numbers of the first entry in the log's table; used, truncated and dropped are sums over labels."""
    *_, table = log.split("by entry:\n")
    header, *lines = table.splitlines()
    names = ("rows", "bad", "left out", "of these equal", "used", "truncated", "too long, dropped")
    ends = [header.index(name) + len(name) for name in names]
    starts = [header.index(names[0]) - 10, *ends[:-1]]
    found = dict.fromkeys(names, 0)
    for line in lines:
        if found["rows"] and not line.startswith(" "):
            break
        for name, start, end in zip(names, starts, ends, strict=True):
            words = line[start:end].split()
            found[name] += int(words[-1].replace(",", "")) if words and words[-1][0].isdigit() else 0
    return found

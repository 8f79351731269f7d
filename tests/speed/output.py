"""Reading what the command prints."""

import json


def printed_results(text: str) -> list[dict]:
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]

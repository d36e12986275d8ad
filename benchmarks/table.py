"""Prints what all benchmarks measured, one line a question: ours, whom against, ratio, target, met or not."""

import json

from _bench import HERE, show


def main() -> None:
    """Reads results/ and prints it."""
    for path in sorted((HERE / "results").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if "rows" in result and all("ratio" in row for row in result["rows"]):
            print(f"\n{path.stem} ({result['date']}, {result['machine'].get('gpu', result['machine']['cpu'])})")
            show(result["rows"])


if __name__ == "__main__":
    main()

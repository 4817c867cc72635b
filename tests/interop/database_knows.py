"""Says whether the CA's SQLite database knows a certificate's serial number: exit code 0 if it does."""

import argparse
import json
import pathlib
import sqlite3
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--serial", required=True)
    args = parser.parse_args()
    wanted = args.serial.lower().replace(":", "")
    found = [place for file in args.folder.iterdir() if is_database(file) for place in places(file, wanted)]
    print(json.dumps({"serial": wanted, "found": found}))
    sys.exit(0 if found else 1)


def is_database(file):
    return file.is_file() and file.open("rb").read(15) == b"SQLite format 3"


def places(file, wanted):
    """Every table and column that holds the serial, as text or as bytes."""
    database = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=20)
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        cursor = database.execute(f'SELECT * FROM "{table}"')
        columns = [column[0] for column in cursor.description]
        for row in cursor:
            for column, value in zip(columns, row):
                text = value.hex() if isinstance(value, bytes) else str(value).lower()
                if wanted.lstrip("0") in text:
                    yield f"{table}.{column}"


main()

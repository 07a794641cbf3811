#!/bin/sh
# pandas 2.3.3 and psycopg 3.2.12. A missing time of a DataFrame is stored as a time in the year 48113.
#
# DataFrame.to_dict("records") has NaT where a time is missing. NaT is an instance of datetime, so psycopg adapts it
# as one. In text format the server gets 'NaT' and refuses it. In binary format, which COPY and `%b` use, the dumper
# subtracts the epoch and sends a number of microseconds: a valid timestamp. Nothing fails, and IS NULL is false.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'pandas==2.3.3' 'psycopg[binary]==3.2.12'
cat > "$folder/try.py" <<'PYTHON'
from datetime import datetime

import pandas as pd
from psycopg.adapt import PyFormat, Transformer

frame = pd.DataFrame({"seen": pd.to_datetime(["2026-01-01", None])})
missing = frame.to_dict("records")[1]["seen"]
print(type(missing).__name__, isinstance(missing, datetime), missing == missing)
for form in (PyFormat.TEXT, PyFormat.BINARY):
    sent = bytes(Transformer().get_dumper(missing, form).dump(missing))
    print(form.name, sent if form is PyFormat.TEXT else int.from_bytes(sent, "big", signed=True))
# The epoch of PostgreSQL is 2000-01-01, and the mean year of its calendar has 365.2425 days.
print("year", 2000 + int(int.from_bytes(sent, "big", signed=True) / 1e6 / 86400 / 365.2425))
PYTHON
"$folder/venv/bin/python" "$folder/try.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
NaTType True False
TEXT b'NaT'
BINARY 1455213772801000000
year 48113
SEEN
diff "$folder/expected" "$folder/seen" 
cat "$folder/seen"
